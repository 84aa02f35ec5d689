"""Results of checks, and the checks that daemon and command share.  Used by both.

`usbipd doctor` shows the daemon's checks (`usbipd/extension/health.py`); if no daemon answers, it runs its
own (`usbipd/cli/offline_checks.py`).
"""

import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from usbipd import launchd
from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import CheckResult, CheckState
from usbipd.usb.libusb_version import MINIMUM, dotted, loaded

LONGEST_TEXT: Final = 400
"""Characters of a message or a step: hundreds of devices may fail, and users must be able to read it."""


class Finding(NamedTuple):
    """The state of one thing, and the steps that fix it, each a whole sentence."""

    state: CheckState
    message: str
    steps: tuple[str, ...] = ()


def ok(message: str) -> Finding:
    """It works."""
    return Finding(CheckState.OK, message)


def warning(message: str, *steps: str) -> Finding:
    """It works, but not fully or not for all."""
    return Finding(CheckState.WARNING, message, steps)


def failed(message: str, *steps: str) -> Finding:
    """It does not work."""
    return Finding(CheckState.FAILED, message, steps)


def steps_of(error: UsbipdError) -> tuple[str, ...]:
    """The advice of the error as steps, or a line for each platform; it may end with a command to copy."""
    lines = [line.strip() for line in (error.advice or "").splitlines()]
    return (lines[0][:1].upper() + lines[0][1:],) if len(lines) == 1 else tuple(lines)


def check_result(name: str, finding: Finding) -> CheckResult:
    """`finding` of the check `name` as a message; long texts are cut."""
    return CheckResult(
        name=name,
        state=finding.state,
        message=finding.message[:LONGEST_TEXT],
        steps=[step[:LONGEST_TEXT] for step in finding.steps],
    )


def check_libusb(*afterwards: str) -> Finding:
    """Whether libusb can be loaded and is new enough; `afterwards` are the steps after its installation."""
    try:
        version = loaded()
    except OSError as error:
        return failed(
            f"libusb 1.0 cannot be loaded: {error}",
            "Install it: `sudo apt-get install libusb-1.0-0` (Debian), `brew install libusb` (macOS).",
            *afterwards,
        )
    if version.number < MINIMUM:
        return failed(
            f"libusb {version} is too old: usbipd needs {dotted(MINIMUM)} or newer",
            "Install a newer libusb, from the system's packages or from https://libusb.info.",
            *afterwards,
        )
    return ok(f"libusb {version}")


def check_launchd(job: Path, launchctl: Path = launchd.LAUNCHCTL) -> Finding:
    """Whether launchd has the job of the file `job`, which starts the daemon.  Blocks for seconds at most."""
    if not job.exists():
        return warning(
            f"no launchd job is installed ({job} does not exist): the daemon does not start automatically",
            "Install usbipd from its package.",
        )
    try:
        code = launchd.print_job(job, launchctl)
    except OSError as error:
        return failed(f"{launchctl} cannot be run: {error.strerror}", "Restart this Mac.")
    except subprocess.TimeoutExpired:
        return failed(f"launchctl did not answer within {launchd.TIMEOUT:g} s", "Restart this Mac.")
    if code == 0:
        return ok(f"launchd has the job {job.stem}")
    return failed(
        f"launchd does not have the job {job.stem} (launchctl print: exit code {code}): "
        "it is switched off or was never loaded",
        *launchd.steps_to_load(job),
    )
