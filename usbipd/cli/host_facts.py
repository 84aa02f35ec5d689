"""The machine of a bug report.  Runs in the caller's process."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from usbipd import __version__, launchd, paths
from usbipd.cli.bug_report_document import HostFacts, LaunchdJob
from usbipd.cli.offline_checks import TIMEOUT
from usbipd.text import readable
from usbipd.usb import libusb_version

SYSCTL: Final = Path("/usr/sbin/sysctl")
LINUX_MODEL: Final = Path("/sys/class/dmi/id/product_name")  # Documentation/ABI/testing/sysfs-class-dmi


def host_facts() -> HostFacts:
    """This machine."""
    mac = platform.mac_ver()[0]
    model, build = _model_of_mac() if mac else (_first_line(LINUX_MODEL), platform.version())
    try:
        libusb = str(libusb_version.loaded())
    except OSError:
        libusb = None
    return HostFacts(
        system="macOS" if mac else platform.system(),
        system_version=mac or platform.release(),
        system_build=build,
        machine=platform.machine(),
        model=model,
        usbipd=__version__,
        python=platform.python_version(),
        libusb=libusb,
        is_root=os.geteuid() == 0,
    )


def _model_of_mac() -> tuple[str | None, str | None]:
    """hw.model and the build of macOS, as sysctl(8) names them."""
    lines = (_output(SYSCTL, "-n", "hw.model", "kern.osversion") or "").splitlines()
    return (lines[0], lines[1]) if len(lines) == 2 else (None, None)


def _first_line(path: Path) -> str | None:
    try:
        return readable(path.read_bytes().strip()) or None
    except OSError:
        return None


def launchd_job(launchctl: Path = launchd.LAUNCHCTL) -> LaunchdJob | None:
    """The state of the extension's job in launchd."""
    job = paths.launch_daemon()
    if job is None:
        return None
    code: int | None
    try:
        code = launchd.print_job(job, launchctl)
    except (OSError, subprocess.TimeoutExpired):
        code = None
    return LaunchdJob(file=str(job), is_installed=job.exists(), exit_code=code)


def _output(*command: str | Path) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command, check=True, capture_output=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
