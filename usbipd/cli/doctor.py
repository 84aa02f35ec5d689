"""`usbipd doctor`, and what `usbipd-ext --health` shows: what is wrong, and how to mend it.  With `--report`
it writes down all that it finds, for a maintainer.

Runs in the caller's process.  An extension that answers examines itself; without one the checks are made from
here, as far as the caller's rights go.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import HealthDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, never
from usbipd.cli.table import wrap
from usbipd.cli.terminal import terminal_width
from usbipd.errors import UsageError
from usbipd.ipc.control_messages import CheckResult, CheckState
from usbipd.spelling import Spelling
from usbipd.usb.identity import parse_busid

REPORT_TO_STDOUT: Final = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON for programs (see docs/json.md)")
    output.add_argument(
        "--report",
        metavar="FILE",
        nargs="?",
        type=Path,
        const=Path(),
        help="write all that is known of this host and its devices into FILE, for a maintainer "
        "(default: usbipd-report-DATE-TIME.json; -: standard output)",
    )
    parser.add_argument(
        "--try-claim",
        metavar="BUSID",
        type=parse_busid,
        action="append",
        default=[],
        help="with --report: take this device from its drivers and give it back, and report what happened; "
        "may come several times",
    )
    parser.add_argument(
        "--with-serials",
        action="store_true",
        help="with --report: write serial numbers of devices, which are left out otherwise",
    )


def check(arguments: argparse.Namespace) -> None:
    for option, is_given in (
        ("--try-claim", arguments.try_claim),
        ("--with-serials", arguments.with_serials),
    ):
        if is_given and arguments.report is None:
            raise UsageError(f"{option} goes with --report", code="usage")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    if arguments.report is None:
        return show_health(extension, as_json=arguments.json)
    return write_report(
        extension, arguments.report, try_claims=arguments.try_claim, with_serials=arguments.with_serials
    )


def write_report(
    extension: ControlConnection, path: Path, *, try_claims: Sequence[str], with_serials: bool
) -> int:
    """Write a report to `path`, the empty one being a new file of the usual name; the exit code, always 0."""
    from usbipd.cli import bug_report  # here: it takes long, and no other command needs it

    document = bug_report.BugReporter(extension).collect(try_claims)
    if not with_serials:
        document = bug_report.redact_serials(document)
    if path == REPORT_TO_STDOUT:
        emit(render(document))
    else:
        path = bug_report.usual_name() if path == Path() else path
        bug_report.write(document, path)
    say("It contains:")
    for line in document.contains:
        say(f"  {line}")
    say(f"  serial numbers of devices: {'yes' if with_serials else 'left out'}")
    unanswered = [each.question for each in document.assumptions if not each.evidence]
    say(f"It answers {len(document.assumptions) - len(unanswered)} of {len(document.assumptions)} questions.")
    if path != REPORT_TO_STDOUT:
        say(f"Written to {path}: read it before you send it.")
    return 0


def show_health(extension: ControlConnection, *, as_json: bool) -> int:
    """Print every check; the exit code: 1 if one failed.  `extension` is not open yet."""
    from usbipd.cli.offline_checks import examine  # here: it takes long, and no other command needs it

    checks = examine(extension)
    if as_json:
        emit(render(HealthDocument(checks=checks)))
    else:
        emit(format_checks(checks, terminal_width()))
        say(_summary(checks))
    return 1 if any(check.state is CheckState.FAILED for check in checks) else 0


def format_checks(checks: Sequence[CheckResult], width: int) -> str:
    """A paragraph for each check: how it came out, its name, what it found, its numbered steps."""
    names = max((len(check.name) for check in checks), default=0)
    states = max(len(state.value) for state in CheckState)
    indent = " " * (states + 2)
    text, spelling = "", Spelling.here()
    for check in checks:
        begin = f"{check.state.value:<{states}}  {check.name:<{names}}  "
        text += wrap(check.message, width, indent, first=begin)
        for number, step in enumerate(check.steps, 1):
            text += wrap(spelling.spell(step), width, f"{indent}   ", first=f"{indent}{number}. ")
    return text


def _summary(checks: Sequence[CheckResult]) -> str:
    failed = sum(check.state is CheckState.FAILED for check in checks)
    warnings = sum(check.state is CheckState.WARNING for check in checks)
    parts = [
        f"{number} {what if number == 1 else f'{what}s'}"
        for number, what in ((failed, "failure"), (warnings, "warning"))
        if number
    ]
    return ", ".join(parts) or "All is well."


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=never,
    run=run,
    check=check,
)
