"""The entry point of all processes: chooses the role of this one.

The program name decides: `usbipd` is the user's command, `usbipd-ext` the extension and its command.
`@server` and `@worker` as first argument start a child of the extension; only the extension can start these,
since they need their channel as descriptor 3.  Each role imports only what it needs; only this module imports
from several roles.
"""

import gc
import os
import stat
import sys
from typing import TYPE_CHECKING

from usbipd.errors import INTERRUPTED
from usbipd.ipc import CHANNEL_DESCRIPTOR

if TYPE_CHECKING:
    from usbipd.cli.ext import RunDaemon


def main() -> int:
    """Runs this process; returns its exit code."""
    try:
        return _enter()
    except KeyboardInterrupt:  # during the import of a role
        return INTERRUPTED


def _enter() -> int:
    _fill_standard_descriptors()
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - workers need no pathlib, which is a tenth of them
    arguments = sys.argv[1:]
    if arguments[:1] in (["@server"], ["@worker"]):
        if not _is_socket(CHANNEL_DESCRIPTOR):
            print(f"usbipd: only usbipd-ext can start {arguments[0]}", file=sys.stderr)
            return 2
        if arguments[0] == "@server":
            from usbipd.server.process import main as server

            return server(arguments[1:])
        from usbipd.worker.process import main as worker

        return worker(arguments[1:])
    try:
        if name == "usbipd-ext":
            from usbipd.cli.ext import main as extension_command

            return extension_command(arguments, load_daemon)
        from usbipd.cli.main import main as command

        return command(arguments)
    finally:
        gc.freeze()  # avoids the collection at exit: 13 % of the CPU time of `usbipd list`


def load_daemon() -> "RunDaemon":
    """The function behind `usbipd-ext --run`."""
    from usbipd.extension.process import run

    return run


def _fill_standard_descriptors() -> None:
    """Open /dev/null as each of 0 to 2 that is closed.

    Otherwise the next files and sockets would get these numbers and pass for standard streams.  This includes
    files that libraries open at load: libffi 3.5 keeps one open.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
