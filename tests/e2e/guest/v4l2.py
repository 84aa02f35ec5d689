"""Captures frames from a camera through the kernel's V4L2.  Runs in the guest.

Source: include/uapi/linux/videodev2.h, for 64-bit processors.
"""

import fcntl
import mmap
import os
import select
import struct
from pathlib import Path
from typing import Final

from tests.e2e.guest.scenario import check
from tests.e2e.guest.system import PATIENCE

VIDEO_CAPTURE: Final = 1  # enum v4l2_buf_type
MEMORY_MMAP: Final = 1  # enum v4l2_memory
BUFFER_ERROR: Final = 0x40  # V4L2_BUF_FLAG_ERROR
YUYV: Final = b"YUYV"

VIDIOC_G_FMT: Final = 0xC0D05604
VIDIOC_REQBUFS: Final = 0xC0145608
VIDIOC_QUERYBUF: Final = 0xC0585609
VIDIOC_QBUF: Final = 0xC058560F
VIDIOC_DQBUF: Final = 0xC0585611
VIDIOC_STREAMON: Final = 0x40045612
VIDIOC_STREAMOFF: Final = 0x40045613

_FORMAT: Final = struct.Struct(
    "I4xII4sIII176x"
)  # type; width, height, pixelformat, field, bytesperline, sizeimage
_REQUEST: Final = struct.Struct("IIIII")  # count, type, memory, capabilities, flags
_BUFFER: Final = struct.Struct("IIIII4x16x16xIIQIII4x")
"""index, type, bytesused, flags, field; sequence, memory, offset, length, reserved2, request_fd."""


def capture(node: Path, count: int) -> tuple[tuple[int, int, bytes], list[bytes]]:
    """Width, height and pixel format of a camera, and its first `count` frames.

    Each has a buffer from the start, so that none is lost.  Raises `StepError` if one does not arrive or is
    broken.
    """
    camera = os.open(node, os.O_RDWR)
    try:
        answer = fcntl.ioctl(camera, VIDIOC_G_FMT, _FORMAT.pack(VIDEO_CAPTURE, 0, 0, b"", 0, 0, 0))
        _type, width, height, pixel_format, *_rest = _FORMAT.unpack(answer)
        request = fcntl.ioctl(camera, VIDIOC_REQBUFS, _REQUEST.pack(count, VIDEO_CAPTURE, MEMORY_MMAP, 0, 0))
        check(
            _REQUEST.unpack(request)[0] == count, f"only {_REQUEST.unpack(request)[0]} buffers are available"
        )
        for index in range(count):
            fcntl.ioctl(camera, VIDIOC_QBUF, _buffer(index))
        fcntl.ioctl(camera, VIDIOC_STREAMON, struct.pack("i", VIDEO_CAPTURE))
        frames = [_next_frame(camera, number) for number in range(count)]
        fcntl.ioctl(camera, VIDIOC_STREAMOFF, struct.pack("i", VIDEO_CAPTURE))
    finally:
        os.close(camera)
    return (width, height, pixel_format), frames


def _buffer(index: int) -> bytes:
    return _BUFFER.pack(index, VIDEO_CAPTURE, 0, 0, 0, 0, MEMORY_MMAP, 0, 0, 0, 0)


def _next_frame(camera: int, number: int) -> bytes:
    check(bool(select.select([camera], [], [], PATIENCE)[0]), f"frame {number} did not arrive")
    taken = _BUFFER.unpack(fcntl.ioctl(camera, VIDIOC_DQBUF, _buffer(0)))
    index, _type, used, flags, _field, sequence, *_rest = taken
    check(not flags & BUFFER_ERROR, f"frame {number} is broken")
    check(sequence == number, f"frame {sequence} arrived, not {number}")
    place = _BUFFER.unpack(fcntl.ioctl(camera, VIDIOC_QUERYBUF, _buffer(index)))
    offset, length = place[7], place[8]
    with mmap.mmap(camera, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as memory:
        return memory[:used]
