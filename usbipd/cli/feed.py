"""Repeats a request for `--watch` and `--follow`, across restarts of the extension.

Runs in the caller's process.

The extension announces changes; beyond that it is asked once per interval.  When the connection is lost, one
notice is printed, and it is retried until the extension is back.
"""

import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from usbipd.cli.connection import ControlConnection
from usbipd.errors import BROKEN_PIPE, ExtensionUnreachableError, UsbipdError
from usbipd.ipc.messages import Command, Nothing

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 2.0
"""Seconds between attempts to reach an extension that is gone."""

Answer = TypeVar("Answer")


class Spectator(Protocol):
    """Where the answers go."""

    def tell(self, notice: str) -> None:
        """Report on the connection to the extension."""

    def wait(self, readable: int | None, seconds: float) -> bool:
        """Whether `readable` becomes readable within `seconds`; every wait is done here.

        May raise to end the command.
        """


def answers(
    extension: ControlConnection, ask: Callable[[bool], Answer], spectator: Spectator, interval: float
) -> Iterator[Answer]:
    """Yields what `ask` returns: at once, at each change, and every `interval` seconds; `extension` is open.

    `ask` gets whether this is the first request on a connection.  Raises errors of the very first request;
    later only an `ExtensionUnreachableError` if another version of the extension comes back.
    """
    seen = lost = False
    is_connected, is_watching = True, False
    delay = FIRST_PAUSE
    extension.wait_by(spectator.wait)
    while True:
        try:
            if is_watching:
                extension.wait_for_events(interval)
            else:
                if not is_connected:
                    extension.open()
                    is_connected = True
                extension.request(Command.WATCH, Nothing(), Nothing)
            answer = ask(not is_watching)
            is_watching = True
        except UsbipdError as error:
            if not seen or error.code == "version":
                raise
            if not lost:
                gone = isinstance(error, ExtensionUnreachableError)
                what = "lost the extension" if gone else "the daemon could not report its status"
                spectator.tell(f"{what}: {error.message}; trying again")
            lost = True
            extension.close()
            is_connected = is_watching = False
            spectator.wait(None, delay)
            delay = min(2 * delay, LONGEST_PAUSE)
            continue
        if lost:
            spectator.tell("the extension is back")
        seen, lost, delay = True, False, FIRST_PAUSE
        yield answer


def wait_for_reader(readable: int | None, seconds: float) -> bool:
    """Whether `readable` becomes readable within `seconds`, for output to a pipe or a file.

    Exits with `BROKEN_PIPE` as soon as the reader of stdout is gone, as tail(1) does, not only at the next
    change.
    """
    poll = select.poll()
    if readable is not None:
        poll.register(readable, select.POLLIN)
    if _is_pipe(1):  # macOS: poll(2) does not support every other kind of file
        poll.register(1, 0)
    ready = dict(poll.poll(max(0.0, seconds) * 1000))
    if ready.get(1, 0) & (select.POLLERR | select.POLLHUP):
        sys.exit(BROKEN_PIPE)
    return readable in ready


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
