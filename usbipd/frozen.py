"""The one executable that PyInstaller makes: its unpacked files, its launcher, its libusb.

Each start of it is two processes: a launcher, which unpacks the files into a directory of their own, waits,
and removes them; and its child, which is Python.  The children of the extension use the extension's files.
ARCHITECTURE.md says why the files lie where they do.

Used by every process of the executable, and by none of an installed package.  It imports little, because
workers are small.
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
"""The file that is unpacked first: it tells our directories, however incomplete, from those of other programs
that PyInstaller made.  It holds the version of the libusb beside it; packaging/usbipd.spec."""
_UNPACKED_IN: Final = 60.0
"""Seconds in which a launcher has unpacked its files and Python has locked them."""


def home() -> str:
    """The directory of the unpacked files."""
    return str(sys._MEIPASS)  # type: ignore[attr-defined]


def launcher() -> int:
    """The pid of the process that unpacked the files, whether it still lives or not."""
    pid = _launcher_of(os.path.basename(home()))
    if pid is None:
        raise AssertionError(
            f"PyInstaller unpacked into {home()}, whose name does not tell the launcher's pid"
        )
    return pid


def _launcher_of(name: str) -> int | None:
    """The pid in the name of a directory; None: it is not one of PyInstaller's.

    `_MEI`, eight hexadecimal digits, six characters of mkdtemp (bootloader/src/pyi_utils_posix.c).
    """
    if len(name) != 18 or not name.startswith("_MEI"):
        return None
    try:
        return int(name[4:12], 16)
    except ValueError:
        return None


def begin() -> None:
    """What a process does first: it keeps its files, removes those that nobody uses, and will end with its
    launcher.

    A server or worker ends when the extension closes its channel, which it also does when the launcher ends.
    A thread that waits for that would miss those steps of the confinement that are for one thread, and would
    not be allowed to call kill(2).
    """
    # For the programs that we start; the linker has read ours.  The launcher has kept what there was before.
    os.environ.pop("LD_LIBRARY_PATH", None)
    if (before := os.environ.pop("LD_LIBRARY_PATH_ORIG", None)) is not None:
        os.environ["LD_LIBRARY_PATH"] = before
    is_child = sys.argv[1:2] in (["@server"], ["@worker"])
    if is_child and os.getppid() != launcher():
        return  # its files are the extension's, which does all of that
    _lock(home())
    if not is_child:
        _thread.start_new_thread(end_with, (launcher(),))
    for path in stale(os.path.dirname(home())):
        import shutil  # not before: hardly ever needed

        shutil.rmtree(path, ignore_errors=True)


def _lock(path: str) -> None:
    try:
        fcntl.flock(_raised(os.open(path, os.O_RDONLY | os.O_DIRECTORY)), fcntl.LOCK_SH)
    except OSError:  # the file system has no locks, or a cleaner was faster: see `Unpacked`
        return


def _raised(descriptor: int) -> int:
    """The same, but none of 0 to 2: where those are closed, it would be taken for a stream."""
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def end_with(parent: int) -> None:
    """Wait for the end of our parent, then end this process by SIGTERM.

    The launcher is whom the shell and the service manager know.  It passes on every signal but SIGKILL;
    without this its orphan would keep the port and the devices, or go on to write to the terminal.  Where the
    system cannot watch a process, as Linux before 5.3, that is so.
    """
    try:
        _wait_for_end(parent)
    except ProcessLookupError:
        pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)


def _wait_for_end(parent: int) -> None:
    """Raises `OSError`, which is a `ProcessLookupError` if it has ended already."""
    if hasattr(os, "pidfd_open"):  # Linux
        descriptor = _raised(os.pidfd_open(parent))
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if os.getppid() == parent:  # else the number was another's by then
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
    """The directories of ours in `directory` that a launcher has left behind, because it was killed.

    The process that uses one holds a lock on it, which systemd-tmpfiles respects, too.  One that is being
    unpacked has no lock yet, but a launcher that lives.  That alone proves nothing: after a restart of the
    machine the pid may be anybody's.
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
        return MARK in names or not names  # a launcher that was killed at once has unpacked nothing
    except OSError:
        return False


def _is_used(path: str, pid: int) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # somebody else has just removed it
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
    except PermissionError:  # somebody else's
        return True
    return True


class Unpacked:
    """The files of this process, for its children."""

    def __init__(self) -> None:
        self._files = [os.path.join(place, name) for place, _, names in os.walk(home()) for name in names]

    def environment(self) -> dict[str, str]:
        """What a child needs so that it uses these files, or unpacks its own if some of them are gone.

        A child with our files starts in half the time, and is one process instead of two.
        """
        if not all(map(os.path.exists, self._files)):
            return {"PYINSTALLER_RESET_ENVIRONMENT": "1"}
        environment = {name: value for name, value in os.environ.items() if name.startswith("_PYI_")}
        if sys.platform != "darwin":  # there the files name each other by their paths
            environment["LD_LIBRARY_PATH"] = home()
        return environment


def load_libusb() -> None:
    """Make Python use the libusb that was packed, as the compiled modules do.

    Raises `UsbipdError` if any of them has got another one.
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
    """Raises `UsbipdError` unless `found` is the libusb that was packed, as "1.0.30": no other was tested."""
    with open(os.path.join(home(), MARK)) as file:
        packed = file.read().strip()
    if found != packed:
        raise UsbipdError(
            f"this executable was built with libusb {packed}, but runs with libusb {found}",
            code="wrong-libusb",
            advice="unset LD_PRELOAD and DYLD_INSERT_LIBRARIES, or install the executable again",
        )
