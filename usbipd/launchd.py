"""The launchd job that starts the extension on macOS, as users handle it.  Used by CLI and extension."""

import subprocess
from pathlib import Path
from typing import Final

LAUNCHCTL: Final = Path("/bin/launchctl")
TIMEOUT: Final = 2.0
"""Seconds that launchctl may take."""


def print_job(job: Path, launchctl: Path = LAUNCHCTL) -> int:
    """The exit code of `launchctl print`: 0 if launchd has the job.  Its text is for people (launchctl(1)).

    Raises `OSError` if it cannot be started, `subprocess.TimeoutExpired` if it does not answer and is killed.
    """
    command: list[str | Path] = [launchctl, "print", f"system/{job.stem}"]
    return subprocess.run(  # noqa: S603 - a fixed program and our own name
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, env={}
    ).returncode


def steps_to_load(job: Path) -> list[str]:
    """The steps that load the job of the file `job`, which the user switched off or never loaded.

    Since macOS 13 every user can switch such a job off; launchd then refuses to load it.
    """
    target = f"system/{job.stem}"
    return [
        "Open System Settings > General > Login Items & Extensions.",
        'Under "Allow in the Background" (or "App Background Activity"), switch usbipd on; '
        "its entry may be usbipd-ext or the name of the signer.",
        f"Run `sudo launchctl enable {target}`.",
        f"Run `sudo launchctl bootstrap system {job}`.",
        f"Check that it is loaded: `launchctl print {target}`.",
    ]
