"""One answer of the extension after the other, across restarts of it.  Runs in the caller's process.

The extension tells when something has changed; whatever happens, it is asked once in an interval.  When it
goes away that is said once, and it is connected to again as soon as it is back.
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
    """The person or the program that the answers are for."""

    def tell(self, notice: str) -> None:
        """Say something about the watching itself."""

    def wait(self, readable: int | None, seconds: float) -> bool:
        """Whether this descriptor becomes readable within so many seconds; all waiting is done here.

        May raise what ends the watching.
        """


def answers(
    extension: ControlConnection, ask: Callable[[bool], Answer], spectator: Spectator, interval: float
) -> Iterator[Answer]:
    """What `ask` returns: at once, at each change, and every `interval` seconds; `extension` is open.

    `ask` is called with whether this is the first time after a connect.  What it raises at its very first
    call goes to the caller; later only an `ExtensionUnreachableError` if another version of the extension
    comes back.
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
    """Whether the descriptor becomes readable within so many seconds, for output that goes to a pipe or a
    file.

    Ends the command with `BROKEN_PIPE` as soon as no process can read stdout any more, as tail(1) does: else
    it would wait for the next change to notice.
    """
    poll = select.poll()
    if readable is not None:
        poll.register(readable, select.POLLIN)
    if _is_pipe(1):  # of other files, poll(2) of macOS does not know all
        poll.register(1, 0)
    ready = dict(poll.poll(max(0.0, seconds) * 1000))
    if ready.get(1, 0) & (select.POLLERR | select.POLLHUP):
        sys.exit(BROKEN_PIPE)
    return readable in ready


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
