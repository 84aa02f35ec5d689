"""`usbipd doctor` and `usbipd-ext --health`: problems and how to fix them; `--report` writes a bug report.

Runs in the caller's process.  A running extension checks itself; without one, the checks run here, with the
caller's rights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.arguments import add_color_argument
from usbipd.cli.check_groups import grouped, problems
from usbipd.cli.colour import Paint, paint_for, plain
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import HealthDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.subcommand import Subcommand, never
from usbipd.cli.table import wrap
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
        help="write a bug report about this host and its devices to FILE "
        "(default: usbipd-report-DATE-TIME.json; -: standard output)",
    )
    parser.add_argument("--problems", action="store_true", help="show only failures and warnings")
    add_color_argument(parser)
    parser.add_argument(
        "--try-claim",
        metavar="BUSID",
        type=parse_busid,
        action="append",
        default=[],
        help="with --report: claim this device, release it, and report what happened; "
        "can be given several times",
    )
    parser.add_argument(
        "--with-serials",
        action="store_true",
        help="with --report: include serial numbers of devices",
    )


def check(arguments: argparse.Namespace) -> None:
    for option, is_given in (
        ("--try-claim", arguments.try_claim),
        ("--with-serials", arguments.with_serials),
    ):
        if is_given and arguments.report is None:
            raise UsageError(f"{option} requires --report", code="usage")
    if arguments.problems and arguments.report is not None:
        raise UsageError("--report and --problems cannot be combined: a report has all checks", code="usage")


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    if arguments.report is None:
        return show_health(
            extension,
            paint_for(arguments.color),
            as_json=arguments.json,
            only_problems=arguments.problems,
        )
    return write_report(
        extension, arguments.report, try_claims=arguments.try_claim, with_serials=arguments.with_serials
    )


def write_report(
    extension: ControlConnection, path: Path, *, try_claims: Sequence[str], with_serials: bool
) -> int:
    """Write a report to `path`; if empty, to a new file of the usual name.  The exit code is always 0."""
    from usbipd.cli import bug_report  # here: slow to import

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
        say(f"Written to {path}. Review it before you send it.")
    return 0


def show_health(extension: ControlConnection, paint: Paint, *, as_json: bool, only_problems: bool) -> int:
    """Print all checks or only the problems; the exit code: 1 if a check failed.

    `extension` is not open yet.
    """
    from usbipd.cli.offline_checks import examine  # here: slow to import

    checks = examine(extension)
    if only_problems:
        checks = problems(checks)
    if as_json:
        emit(render(HealthDocument(checks=checks)))
    else:
        emit(format_checks(checks, get_terminal_size().columns, paint))
        say(_summary(checks))
    return 1 if any(check.state is CheckState.FAILED for check in checks) else 0


def format_checks(checks: Sequence[CheckResult], width: int, paint: Paint = plain) -> str:
    """A paragraph for each check, the worst first: state, name, message, numbered steps."""
    names = max((len(check.name) for check in checks), default=0)
    states = max(len(state.value) for state in CheckState)
    indent = " " * (states + 2)
    text, spelling = "", Spelling.here()
    for check in grouped(checks):
        state = check.state.value
        found = wrap(check.message, width, indent, first=f"{state:<{states}}  {check.name:<{names}}  ")
        text += paint(state) + found.removeprefix(state) if found.startswith(state) else found
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
    return ", ".join(parts) or "No problems found."


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=never,
    run=run,
    usage="[OPTIONS]",
    examples=(
        ("show problems and how to fix them", "usbipd doctor"),
        ("show only failures and warnings", "usbipd doctor --problems"),
        ("write a bug report", "usbipd doctor --report"),
    ),
    check=check,
)
