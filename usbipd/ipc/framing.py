"""Frames on a stream socket, and the descriptors sent with them.  Used by every process.

A frame is a header of five bytes, the length of the payload (4, big-endian) and flags (1), and the payload,
one encoded envelope.  With flag 1, exactly one descriptor is sent with the first byte of the frame
(SCM_RIGHTS).  `FrameDecoder` does no I/O.
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from usbipd.errors import IPCError
from usbipd.ipc.messages import MAX_MESSAGE

_HEADER: Final = struct.Struct(">IB")
_WITH_DESCRIPTOR: Final = 0x01
_ANCILLARY_SPACE: Final = socket.CMSG_LEN(struct.calcsize("i"))
"""Space for one descriptor.  CMSG_SPACE, with its padding, has space for a second one on Linux, but not on
macOS; with CMSG_LEN a second one is cut off on both (MSG_CTRUNC)."""
_CLOSE_ON_EXEC: Final[int] = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux; elsewhere set after receiving


class Frame(NamedTuple):
    """One payload and its descriptor, which the caller now owns."""

    payload: bytes
    descriptor: int | None


class FrameDecoder:
    """Bytes and descriptors in, frames out, in any chunking; a length alone allocates no memory."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    @property
    def wanted(self) -> int:
        """Bytes missing from the header, then from the frame: reading them never reads past the frame."""
        if len(self._buffer) < _HEADER.size:
            return _HEADER.size - len(self._buffer)
        length, _flags = _HEADER.unpack_from(self._buffer)
        return _HEADER.size + int(length) - len(self._buffer)

    @property
    def in_frame(self) -> bool:
        """Whether a frame is incomplete."""
        return bool(self._buffer)

    def feed(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Add received bytes and descriptors.  The decoder owns the descriptors from now on."""
        self._buffer += data
        self._descriptors.extend(descriptors)

    def next_frame(self) -> Frame | None:
        """The next complete frame; None: more bytes are needed.  Raises `IPCError` for an invalid frame."""
        if len(self._buffer) < _HEADER.size:
            if len(self._descriptors) > bool(self._buffer):
                raise IPCError("a descriptor that no frame announced", code="bad-frame")
            return None
        length, flags = _HEADER.unpack_from(self._buffer)
        if not 0 < length <= MAX_MESSAGE:
            raise IPCError(f"frame of {length} bytes: must be 1 to {MAX_MESSAGE}", code="bad-frame")
        if flags not in (0, _WITH_DESCRIPTOR):
            raise IPCError(f"unknown frame flags {flags:#04x}", code="bad-frame")
        end = _HEADER.size + length
        if len(self._buffer) < end:
            if len(self._descriptors) > flags:
                raise IPCError("a descriptor that no frame announced", code="bad-frame")
            return None
        if flags and not self._descriptors:
            raise IPCError("a frame without the descriptor that it announced", code="bad-frame")
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return Frame(payload, self._descriptors.popleft() if flags else None)

    def close(self) -> None:
        """Close the descriptors that belong to no frame yet."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def encode_frame(payload: bytes, *, descriptor: bool) -> bytes:
    """Frame `payload`; `descriptor` announces one, sent with the first byte.  Raises `IPCError`."""
    if len(payload) > MAX_MESSAGE:
        raise IPCError(f"message of {len(payload)} bytes: the limit is {MAX_MESSAGE}", code="too-large")
    return _HEADER.pack(len(payload), _WITH_DESCRIPTOR if descriptor else 0) + payload


def receive_into(decoder: FrameDecoder, connection: socket.socket, size: int) -> bool:
    """One recvmsg of at most `size` bytes into `decoder`; False at end of file.

    Descriptors are made close-on-exec.  Raises `OSError`, and `IPCError` if descriptors were cut off
    (MSG_CTRUNC); the others are closed then.
    """
    data, ancillary, flags, _address = connection.recvmsg(size, _ANCILLARY_SPACE, _CLOSE_ON_EXEC)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            count = len(content) // struct.calcsize("i")
            descriptors += struct.unpack_from(f"{count}i", content)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    decoder.feed(data, descriptors)
    if flags & socket.MSG_CTRUNC:
        decoder.close()
        raise IPCError("more than one descriptor in a message", code="bad-frame")
    return bool(data)


def send_some(connection: socket.socket, data: bytes | memoryview, descriptor: int | None) -> int:
    """One sendmsg of a frame or the rest of one; returns the bytes sent.

    The descriptor is sent with the first byte.  Raises `OSError`.
    """
    ancillary = []
    if descriptor is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))]
    return connection.sendmsg([data], ancillary)
