"""`usbipd doctor`, and what `usbipd-ext --health` shows: what is wrong, and how to mend it.

Runs in the caller's process.  An extension that answers examines itself; without one the checks are made from
here, as far as the caller's rights go.
"""

import argparse
from collections.abc import Sequence

from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import HealthDocument, render
from usbipd.cli.outcome import emit, say
from usbipd.cli.table import terminal_width, wrap
from usbipd.cli.verb import Verb, add_json_argument, never
from usbipd.ipc.reports import CheckReport, CheckState


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    return show_health(extension, as_json=arguments.json)


def show_health(extension: ControlConnection, *, as_json: bool) -> int:
    """Print every check; the exit code: 1 if one failed.  `extension` is not open yet."""
    from usbipd.cli.checks import examine  # here: it takes long, and no other command needs it

    checks = examine(extension)
    if as_json:
        emit(render(HealthDocument(checks=checks)))
    else:
        emit(format_checks(checks, terminal_width()))
        say(_summary(checks))
    return 1 if any(check.state is CheckState.FAILED for check in checks) else 0


def format_checks(checks: Sequence[CheckReport], width: int) -> str:
    """A paragraph for each check: how it came out, its name, what it found, its numbered steps."""
    names = max((len(check.name) for check in checks), default=0)
    states = max(len(state.value) for state in CheckState)
    indent = " " * (states + 2)
    text = ""
    for check in checks:
        begin = f"{check.state.value:<{states}}  {check.name:<{names}}  "
        text += wrap(check.message, width, indent, first=begin)
        for number, step in enumerate(check.steps, 1):
            text += wrap(step, width, f"{indent}   ", first=f"{indent}{number}. ")
    return text


def _summary(checks: Sequence[CheckReport]) -> str:
    failed = sum(check.state is CheckState.FAILED for check in checks)
    warnings = sum(check.state is CheckState.WARNING for check in checks)
    parts = [
        f"{number} {what if number == 1 else f'{what}s'}"
        for number, what in ((failed, "failure"), (warnings, "warning"))
        if number
    ]
    return ", ".join(parts) or "All is well."


VERB = Verb(
    add_arguments=add_json_argument,
    requires_extension=never,
    run=run,
)
