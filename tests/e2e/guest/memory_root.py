"""A root in memory for programs that must run while the host's files are unreachable.  Runs in the guest.

After suspend 9p is dead: its driver cannot recover (net/9p/trans_virtio.c), and opening a host file hangs
forever.  So all files opened later are copied first.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.e2e.guest.system import run

ROOT: Final = Path("/mnt/root")
SOURCES: Final = Path(__file__).parents[3]
PACKAGES: Final = ("usb1", "msgspec", "psutil", "__editable__*.pth")
"""The packages of the virtual environment that usbipd needs."""
NOT_NEEDED: Final = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "test", "tests", "config-*", "*.opt-?.*", "*_test*", "turtle*"),
    *("distutils", "ensurepip", "idlelib", "lib2to3", "pydoc*", "tkinter", "unittest", "wsgiref", "xml*"),
    *("cp[0-9]*", "iso*", "mac_*"),  # of encodings
)
"""Of Python's standard library."""
SHOW_LIBRARIES: Final = """
import usb1, usbipd.extension.process, usbipd.worker.process
usb1.loadLibrary()
print(open("/proc/self/maps").read())
"""


def enter() -> None:
    """Copy Python, usbipd, these tests and the stock client into memory, and restart this program there.

    /proc, /sys, /dev and /run are shared with it, except /run/e2e, which is an empty directory.  Returns in
    the restarted program.
    """
    if os.environ.get("E2E_ROOT") == str(ROOT):
        return
    ROOT.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "tmpfs", ROOT)
    packages, programs = Path(sysconfig.get_path("purelib")), Path(sys.prefix, "bin")
    usbip = Path(shutil.which("usbip") or "usbip")
    _copy([Path(sysconfig.get_path("stdlib")), SOURCES / "usbipd", SOURCES / "tests" / "e2e" / "guest"])
    _copy(path for pattern in PACKAGES for path in packages.glob(pattern))
    _copy(path for pattern in ("python*", "usbipd*", "../pyvenv.cfg") for path in programs.glob(pattern))
    _copy([usbip, *map(Path, ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf"))])
    maps = subprocess.run([sys.executable, "-c", SHOW_LIBRARIES], capture_output=True, text=True, check=True)
    libraries = [Path(path) for path in set(re.findall(r"/\S+\.so[.\d]*$", maps.stdout, re.MULTILINE))]
    # the loader uses shorter names, which are symlinks
    _copy(path for each in libraries for path in each.parent.glob(f"{each.name.partition('.so')[0]}.so*"))
    _copy(Path(path) for path in re.findall(r"(/\S+) \(0x", run("ldd", usbip, sys.executable)))
    for directory in ("proc", "sys", "dev", "run", "tmp", "var/lib"):
        (ROOT / directory).mkdir(parents=True, exist_ok=True)  # the clone may be in /tmp
    (ROOT / "var" / "run").symlink_to("/run")
    for directory in ("proc", "sys", "dev"):
        run("mount", "--rbind", f"/{directory}", ROOT / directory)
    run("mount", "--bind", "/run", ROOT / "run")
    os.chroot(ROOT)
    os.chdir(SOURCES)
    os.environ["E2E_ROOT"] = str(ROOT)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _copy(paths: Iterable[Path]) -> None:
    """Copy each to the same path, with the targets of symlinks on the way."""
    for path in paths:
        real = path.resolve()
        target = ROOT / real.relative_to("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            if real.is_dir():
                shutil.copytree(real, target, symlinks=True, ignore=NOT_NEEDED)
            else:
                shutil.copy2(real, target)
        link = ROOT / path.relative_to("/")
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real)
