"""What a check finds, and the checks of this host that daemon and command both make.

`usbipd doctor` shows the daemon's checks (`usbipd/extension/health.py`); while no daemon answers, its own
(`usbipd/cli/offline_checks.py`).
"""

from pathlib import Path
from typing import NamedTuple

from usbipd import launchd
from usbipd.errors import UsbipdError
from usbipd.ipc.reports import CheckState
from usbipd.usb.libusb_version import MINIMUM, dotted, loaded


class Finding(NamedTuple):
    """The state of one thing, and the steps that fix it: each a whole sentence."""

    state: CheckState
    message: str
    steps: tuple[str, ...] = ()


def ok(message: str) -> Finding:
    """As it should be."""
    return Finding(CheckState.OK, message)


def warning(message: str, *steps: str) -> Finding:
    """It works, but not as it could, or not for all."""
    return Finding(CheckState.WARNING, message, steps)


def failed(message: str, *steps: str) -> Finding:
    """It does not work."""
    return Finding(CheckState.FAILED, message, steps)


def steps_of(error: UsbipdError) -> tuple[str, ...]:
    """What the error's advice says to do: a sentence, or a line for each platform."""
    lines = [line.strip() for line in (error.advice or "").splitlines()]
    return (lines[0][:1].upper() + lines[0][1:],) if len(lines) == 1 else tuple(lines)


def check_libusb(*afterwards: str) -> Finding:
    """Whether libusb can be loaded, and is new enough; `afterwards`: steps once a good one is installed."""
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


def job_not_loaded(job: Path, code: int) -> Finding:
    """Of the launchd job of the file `job`, with the exit code of `launchctl print`."""
    return failed(
        f"launchd does not have the job {job.stem} (launchctl print: exit code {code}): "
        "it is switched off, or was never loaded",
        *launchd.steps_to_load(job),
    )
