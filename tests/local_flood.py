"""A user of this host whose programs overload the extension with requests, for tests.

    with LocalFlood(directory, uid=65534) as flood:
        ...observe other clients meanwhile
        flood.answers()  # received so far

Runs in a separate process as that user: the kernel tells the extension who connects.
"""

import argparse
import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.conversation import Conversation, request_frame
from usbipd.ipc.framing import FrameDecoder
from usbipd.ipc.messages import MAX_MESSAGE, Command, Nothing

CONNECTIONS: Final = 32
"""The limit of one user."""
AT_ONCE: Final = 64
"""Requests that each connection keeps pending."""


class LocalFlood:
    """A running flood of LIST."""

    def __init__(self, directory: Path, uid: int) -> None:
        """`directory` contains `control.sock`; the user may enter it, but perhaps not its parents."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.local_flood", str(directory), str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answers(self) -> int:
        """The number of answers so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()  # closes its stdin, which stops it


class _Connection:
    """Keeps `AT_ONCE` requests pending."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        self._decoder = FrameDecoder()
        self._next = 1
        self._unsent = Conversation(PEOPLE).hello()
        self._ask(AT_ONCE)

    def read(self) -> int:
        """The number of answers that have arrived."""
        self._decoder.feed(self.socket.recv(MAX_MESSAGE))
        answered = 0
        while (frame := self._decoder.next_frame()) is not None:
            answered += b"response" in frame.payload[:32]  # not the hello
        self._ask(answered)
        return answered

    def _ask(self, number: int) -> None:
        for _each in range(number):
            self._unsent += request_frame(self._next, "flood", Command.LIST, Nothing())
            self._next += 1
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return


def main() -> None:
    """The process of a `LocalFlood`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("uid", type=int)
    given = parser.parse_args()
    os.chdir(given.directory)
    os.setgroups([])
    os.setgid(given.uid)
    os.setuid(given.uid)
    selector = selectors.DefaultSelector()
    for _number in range(CONNECTIONS):
        connection = _Connection("control.sock")
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    answers = 0
    while True:
        for key, _events in selector.select():
            if key.data is not None:
                answers += key.data.read()
            elif os.read(sys.stdin.fileno(), 1):
                print(answers, flush=True)
            else:
                return


if __name__ == "__main__":
    main()
