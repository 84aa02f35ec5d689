"""Feeds a reader whole, byte by byte, and with trailing bytes."""

from tests.urb import StreamReader
from usbipd.protocol.reader import MessageT, OneMessageReader

TRAILING = b"\xf1\xf2\xf3"


def read_whole(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` in one piece; the reader must then want no more."""
    message = reader.feed(data)
    assert reader.wanted == 0
    return message


def read_bytewise(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` byte by byte; it must end exactly with the last byte."""
    for index in range(len(data) - 1):
        assert 0 < reader.wanted <= len(data) - index
        assert reader.feed(data[index : index + 1]) is None
    assert reader.wanted == 1
    return read_whole(reader, data[-1:])


def read_wanted(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` for a caller that reads only what the reader wants."""
    begin = 0
    message = None
    while wanted := reader.wanted:
        message = reader.feed(data[begin : begin + wanted])
        begin += wanted
    assert begin == len(data)
    return message


def read_with_trailing(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` with trailing bytes, which the reader must not touch."""
    message = reader.feed(data + TRAILING[:1])
    assert reader.feed(TRAILING[1:]) is None
    assert reader.trailing == TRAILING
    assert reader.wanted == 0
    return message


ONE_MESSAGE = [read_whole, read_bytewise, read_wanted, read_with_trailing]


def stream_whole(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` in one piece."""
    return reader.feed(data)


def stream_bytewise(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` byte by byte."""
    return [message for byte in data for message in reader.feed(bytes([byte]))]


def stream_with_trailing(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` followed by the first bytes of another one, here zeros."""
    messages = reader.feed(data + bytes(4))
    assert reader.feed(bytes(3)) == []
    return messages


STREAM = [stream_whole, stream_bytewise, stream_with_trailing]
