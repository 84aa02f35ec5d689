"""Support for the single executable that PyInstaller builds: its unpacked files, its launcher, its libusb.

Each start makes two processes: a launcher, which unpacks the files into a separate directory, waits, and
removes them; and its child, which is Python.  The children of the extension use the extension's files.
ARCHITECTURE.md explains the location of the files.

Used by every process of the executable, and by none of an installed package.  It imports little, to keep
workers small.
"""

import _thread
import fcntl
import os
import select
import signal
import stat
import sys
import time
from typing import Any, Final

from usbipd.errors import UsbipdError

_BSD: Final[Any] = select  # with kqueue, which `select` does not have on Linux

IS_FROZEN: Final[bool] = getattr(sys, "frozen", False)

MARK: Final = ".usbipd"
"""The file that is unpacked first: it distinguishes our directories, even incomplete ones, from those of
other PyInstaller programs.  It holds the version of the libusb beside it; packaging/usbipd.spec."""
_UNPACKED_IN: Final = 60.0
"""Seconds within which a launcher unpacks its files and Python locks them."""


def home() -> str:
    """The directory of the unpacked files."""
    return str(sys._MEIPASS)  # type: ignore[attr-defined]


def launcher() -> int:
    """The pid of the process that unpacked the files; it may have exited."""
    pid = _launcher_of(os.path.basename(home()))
    if pid is None:
        raise AssertionError(
            f"PyInstaller unpacked into {home()}, whose name does not contain the launcher's pid"
        )
    return pid


def _launcher_of(name: str) -> int | None:
    """The pid in the name of a directory; None if PyInstaller did not create it.

    `_MEI`, eight hexadecimal digits, six characters of mkdtemp (bootloader/src/pyi_utils_posix.c).
    """
    if len(name) != 18 or not name.startswith("_MEI"):
        return None
    try:
        return int(name[4:12], 16)
    except ValueError:
        return None


def begin() -> None:
    """The first step of a process: locks its files, removes unused ones, and arranges to end with its
    launcher.

    A server or worker ends when the extension closes its channel, also after the end of the launcher.  A
    thread that waited for the launcher would escape the steps of the confinement that apply to one thread,
    and could not call kill(2).
    """
    # For programs that we start; the linker has read ours.  The launcher has saved the old value.
    os.environ.pop("LD_LIBRARY_PATH", None)
    if (before := os.environ.pop("LD_LIBRARY_PATH_ORIG", None)) is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    is_child = sys.argv[1:2] in (["@server"], ["@worker"])
    if is_child and os.getppid() != launcher():
        return  # its files belong to the extension, which does all of this
    _lock(home())
    if not is_child:
        _thread.start_new_thread(end_with, (launcher(),))
    for path in stale(os.path.dirname(home())):
        import shutil  # here: rarely needed

        shutil.rmtree(path, ignore_errors=True)


def _lock(path: str) -> None:
    try:
        fcntl.flock(_raised(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), fcntl.LOCK_SH)
    except OSError:  # the file system has no locks, or a cleaner was first: see `Unpacked`
        return


def _raised(descriptor: int) -> int:
    """The same file, but not as 0 to 2: if these are closed, it would pass for a standard stream."""
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def end_with(parent: int) -> None:
    """Wait for the end of our parent, then end this process by SIGTERM.

    The shell and the service manager know only the launcher.  It forwards every signal but SIGKILL; without
    this function an orphan would keep the port and the devices, or keep writing to the terminal.  That still
    happens on systems that cannot watch a process, such as Linux before 5.3.
    """
    try:
        _wait_for_end(parent)
    except ProcessLookupError:
        pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_end(parent: int) -> None:
    """Raises `OSError`; `ProcessLookupError` if it has exited already."""
    if hasattr(os, "pidfd_open"):  # Linux
        descriptor = _raised(os.pidfd_open(parent))
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if os.getppid() == parent:  # else the pid had been reused
            poll.poll()
        os.close(descriptor)
        return
    queue = _BSD.kqueue()
    event = _BSD.kevent(parent, _BSD.KQ_FILTER_PROC, _BSD.KQ_EV_ADD, _BSD.KQ_NOTE_EXIT)
    queue.control([event], 0)
    if os.getppid() == parent:
        queue.control(None, 1, None)
    queue.close()


def stale(directory: str) -> list[str]:
    """Our directories in `directory` that a killed launcher has left behind.

    The process that uses one holds a lock on it, which systemd-tmpfiles respects too.  A directory that is
    being unpacked has no lock yet, but its launcher is alive.  That alone proves nothing: after a reboot the
    pid may belong to any process.
    """
    found = []
    try:
        names = os.listdir(directory)
    except OSError:
        names = []
    for name in names:
        path, pid = os.path.join(directory, name), _launcher_of(name)
        if pid is not None and _is_ours(path) and not _is_used(path, pid):
            found.append(path)
    return found


def _is_ours(path: str) -> bool:
    try:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return False
        names = os.listdir(path)
        return MARK in names or not names  # a launcher that was killed early has unpacked nothing
    except OSError:
        return False


def _is_used(path: str, pid: int) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another process has just removed it
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_alive(pid) and time.time() - os.fstat(descriptor).st_mtime < _UNPACKED_IN
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


class Unpacked:
    """The files of this process, for use by its children."""

    def __init__(self) -> None:
        self._files = [os.path.join(place, name) for place, _, names in os.walk(home()) for name in names]

    def environment(self) -> dict[str, str]:
        """Variables that make a child use these files, or unpack its own if some of them are gone.

        A child with our files starts in half the time and needs one process instead of two.
        """
        if not all(map(os.path.exists, self._files)):
            return {"PYINSTALLER_RESET_ENVIRONMENT": "1"}
        environment = {name: value for name, value in os.environ.items() if name.startswith("_PYI_")}
        if sys.platform != "darwin":  # on macOS the files refer to each other by path
            environment["LD_LIBRARY_PATH"] = home()
        return environment


def load_libusb() -> None:
    """Make Python use the packed libusb, as the compiled modules do.

    Raises `UsbipdError` if any of them has loaded another one.
    """
    import ctypes

    import usb1

    from usbipd._claim import libusb_runtime_name
    from usbipd.usb import libusb_version

    name = "libusb-1.0.0.dylib" if sys.platform == "darwin" else "libusb-1.0.so.0"
    usb1.loadLibrary(ctypes.CDLL(os.path.join(home(), name)))
    check_libusb(str(libusb_version.loaded()))
    check_libusb(libusb_runtime_name())


def check_libusb(found: str) -> None:
    """Raises `UsbipdError` unless `found`, such as "1.0.30", is the packed libusb: no other was tested."""
    with open(os.path.join(home(), MARK)) as file:
        packed = file.read().strip()
    if found != packed:
        raise UsbipdError(
            f"this executable was built with libusb {packed}, but runs with libusb {found}",
            code="wrong-libusb",
            advice="unset LD_PRELOAD and DYLD_INSERT_LIBRARIES, or reinstall the executable",
        )
