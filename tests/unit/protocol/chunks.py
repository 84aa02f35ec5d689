"""Feeding a reader whole, byte by byte, and with what follows."""

from tests.urb import StreamReader
from usbipd.protocol.reader import MessageT, OneMessageReader

TRAILING = b"\xf1\xf2\xf3"


def read_whole(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` at once; the reader must want no more."""
    message = reader.feed(data)
    assert reader.wanted == 0
    return message


def read_bytewise(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` byte by byte, which must end with the last byte and not before."""
    for index in range(len(data) - 1):
        assert 0 < reader.wanted <= len(data) - index
        assert reader.feed(data[index : index + 1]) is None
    assert reader.wanted == 1
    return read_whole(reader, data[-1:])


def read_wanted(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` as a caller reads it that never takes what is not the reader's."""
    begin = 0
    message = None
    while wanted := reader.wanted:
        message = reader.feed(data[begin : begin + wanted])
        begin += wanted
    assert begin == len(data)
    return message


def read_with_trailing(reader: OneMessageReader[MessageT], data: bytes) -> MessageT | None:
    """The message of `data` with more behind it, which the reader must leave alone."""
    message = reader.feed(data + TRAILING[:1])
    assert reader.feed(TRAILING[1:]) is None
    assert reader.trailing == TRAILING
    assert reader.wanted == 0
    return message


ONE_MESSAGE = [read_whole, read_bytewise, read_wanted, read_with_trailing]


def stream_whole(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` at once."""
    return reader.feed(data)


def stream_bytewise(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` byte by byte."""
    return [message for byte in data for message in reader.feed(bytes([byte]))]


def stream_with_trailing(reader: StreamReader[MessageT], data: bytes) -> list[MessageT]:
    """The messages of `data` when the first bytes of another one, here zeros, come with them."""
    messages = reader.feed(data + bytes(4))
    assert reader.feed(bytes(3)) == []
    return messages


STREAM = [stream_whole, stream_bytewise, stream_with_trailing]
