"""Misbehaving clients, for tests: connections that are reopened as soon as they close.

    with Flood(host, port, "import", connections=64, sources=["127.9.9.9"], busid="240-1"):
        ...observe other clients meanwhile

Runs in a separate process, so that it does not share an interpreter with the clients under test.
"""

import argparse
import contextlib
import itertools
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from usbipd.protocol.op import encode_devlist_request, encode_import_request

MODES: Final[dict[str, Callable[[str], bytes]]] = {
    "silent": lambda _busid: b"",
    "half": lambda _busid: encode_devlist_request()[:5],
    "devlist": lambda _busid: encode_devlist_request(),
    "import": encode_import_request,
    "leave": encode_import_request,  # ... and close at once
}
"""The bytes that each connection sends."""

RESET: Final = struct.pack("ii", 1, 0)  # include/linux/socket.h, struct linger: close sends RST, not FIN


class Flood:
    """A running flood; has the number of its connections once it has stopped."""

    def __init__(
        self, host: str, port: int, mode: str, *, connections: int, sources: Sequence[str], busid: str = ""
    ) -> None:
        """Keeps `connections` open, from each of `sources` in turn."""
        self.made = 0
        command = [sys.executable, "-m", "tests.flood", host, str(port), mode, str(connections), busid]
        self._process = subprocess.Popen(
            [*command, *sources], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begun\n", "all connections have been opened"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        output, _nothing = self._process.communicate()  # closes its stdin, which stops it
        self.made = int(output)


class _Flooder:
    def __init__(self, address: tuple[str, int], mode: str, busid: str, sources: Sequence[str]) -> None:
        self._address = address
        self._request = MODES[mode](busid)
        self._leaves = mode == "leave"
        self._sources = itertools.cycle(sources)
        self._selector = selectors.DefaultSelector()
        self._open = 0
        self._made = 0

    def run(self, connections: int) -> int:
        """Runs until stdin ends; returns how many connections the server accepted."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._fill(connections)
        has_begun = False
        while True:
            if not has_begun and self._made >= connections:
                has_begun = True
                print("begun", flush=True)
            for key, events in self._selector.select():
                if key.fileobj is sys.stdin:
                    return self._made
                assert isinstance(key.fileobj, socket.socket)
                self._advance(key.fileobj, events)
            self._fill(connections)

    def _fill(self, connections: int) -> None:
        for _missing in range(connections - self._open):
            source = next(self._sources)
            connection = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
            connection.setblocking(False)
            if self._leaves:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # frees its port
            with contextlib.suppress(OSError):
                connection.bind((source, 0))
                connection.connect_ex(self._address)
            self._selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            self._open += 1

    def _advance(self, connection: socket.socket, events: int) -> None:
        """Once it is writable, send; once it is readable, it was answered or closed."""
        try:
            if events & selectors.EVENT_READ:
                connection.recv(1)
                self._close(connection)
                return
            connection.send(self._request)
        except OSError:
            self._close(connection)
            return
        self._made += 1
        if self._leaves:
            self._close(connection)
        else:
            self._selector.modify(connection, selectors.EVENT_READ)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        self._open -= 1


def main() -> None:
    """The process of a `Flood`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("connections", type=int)
    parser.add_argument("busid")
    parser.add_argument("sources", nargs="+")
    given = parser.parse_args()
    flooder = _Flooder((given.host, given.port), given.mode, given.busid, given.sources)
    print(flooder.run(given.connections))


if __name__ == "__main__":
    main()
