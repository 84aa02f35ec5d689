"""Assembles one message from chunks of any size.  Used by the server and the CLI.

Theory of operation: a parser is a generator that describes the message.  It yields how many bytes it wants
next, is sent exactly these, and returns the message.  `OneMessageReader` buffers the input and runs the
parser as far as the bytes go.  A parser checks each length before it asks for that many bytes, so the buffer
is bounded.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Generic, TypeVar

from usbipd.errors import ProtocolError

MessageT = TypeVar("MessageT")


class OneMessageReader(ABC, Generic[MessageT]):
    """Bytes in, one message out; bytes after it are not parsed.

    A reader that has raised `ProtocolError` raises it again on each call.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._error: ProtocolError | None = None
        self._done = False
        self._parser = self._parse()
        self._size = next(self._parser)

    @abstractmethod
    def _parse(self) -> Generator[int, bytes, MessageT]:
        """The parser of the message; it yields at least once."""

    @property
    def wanted(self) -> int:
        """Number of bytes that surely still belong to the message; a caller that reads no more never takes
        what follows.  0 once the message is complete."""
        return 0 if self._done else self._size - len(self._buffer)

    @property
    def trailing(self) -> bytes:
        """The bytes fed after the message."""
        return bytes(self._buffer) if self._done else b""

    def feed(self, data: bytes) -> MessageT | None:
        """The message if `data` completes it, else None.  Raises `ProtocolError`."""
        self._buffer += data
        if self._error is not None:
            raise self._error
        while not self._done and len(self._buffer) >= self._size:
            part = bytes(self._buffer[: self._size])
            del self._buffer[: self._size]
            try:
                self._size = self._parser.send(part)
            except StopIteration as stop:
                self._done = True
                message: MessageT = stop.value
                return message
            except ProtocolError as error:
                self._error = error
                raise
        return None
