"""The front door: decides which of the roles this process has.

`usbipd` is the user's command and `usbipd-ext` the extension with its command; the name under which we were
called decides.  `@server` and `@worker` as first argument are the extension's children, which nobody else can
start: they need their channel as descriptor 3.  Each role imports what it needs and nothing else; only this
module imports from several of them.
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
    """The entry of every process; returns its exit code."""
    try:
        return _enter()
    except KeyboardInterrupt:  # while a role was being imported
        return INTERRUPTED


def _enter() -> int:
    _fill_standard_descriptors()
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - workers need no pathlib, which is a tenth of them
    arguments = sys.argv[1:]
    if arguments[:1] in (["@server"], ["@worker"]):
        if not _is_socket(CHANNEL_DESCRIPTOR):
            print(f"usbipd: {arguments[0]} is started by usbipd-ext only", file=sys.stderr)
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
        gc.freeze()  # else the interpreter collects garbage at its end: 13 % of the CPU time of `usbipd list`


def load_daemon() -> "RunDaemon":
    """What `usbipd-ext --run` runs."""
    from usbipd.extension.process import run

    return run


def _fill_standard_descriptors() -> None:
    """Open /dev/null as those of 0 to 2 that are closed.

    Otherwise the next files and sockets would get these numbers, and would be taken for standard streams.
    This includes what libraries open when they are loaded: libffi 3.5 keeps its own file open.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free: this one


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
