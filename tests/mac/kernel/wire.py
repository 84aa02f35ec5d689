"""The protocol between the kernel and a process, as in tests/mac/iokit/wire.h.  Runs in the kernel."""

import enum
import struct

HEADER = struct.Struct("<IIII")
"""Length of what follows, `Call`, effective uid, tag."""


class Call(enum.IntEnum):
    REPLY = 1
    COMPLETION = 2
    NOTIFICATION = 3
    POWER = 4
    MATCH = 10
    ITERATOR_NEXT = 11
    ITERATOR_VALID = 12
    ITERATOR_RESET = 13
    OBJECT_RELEASE = 14
    CHILDREN = 15
    PARENT = 16
    DESCRIBE = 17
    PROPERTY = 18
    CONFORMS = 19
    WAIT_QUIET = 20
    SUBSCRIBE = 21
    SYSTEM_VERSION = 22
    POWER_REGISTER = 30
    POWER_DEREGISTER = 31
    POWER_ALLOW = 32
    SERVICE_OPEN = 40
    SERVICE_CLOSE = 41
    DEVICE_OPEN = 50
    DEVICE_CLOSE = 51
    DEVICE_STATE = 52
    CONFIGURATION_DESCRIPTOR = 53
    SET_CONFIGURATION = 54
    RESET_DEVICE = 55
    RE_ENUMERATE = 56
    SUSPEND = 57
    ABORT_PIPE_ZERO = 58
    FIND_INTERFACES = 59
    DEVICE_REQUEST = 60
    DEVICE_REQUEST_SYNC = 61
    INTERFACE_OPEN = 70
    INTERFACE_CLOSE = 71
    INTERFACE_STATE = 72
    PIPE_PROPERTIES = 73
    ENDPOINT_PROPERTIES = 74
    SET_ALTERNATE = 75
    ABORT_PIPE = 76
    CLEAR_STALL = 77
    READ = 78
    WRITE = 79
    WRITE_SYNC = 80
    READ_ISOC = 81
    WRITE_ISOC = 82
    FRAME_NUMBER = 83
    CONTROL = 200
    """From a test: a method of `Control`, by name; no process of a Mac sends it."""


class ValueType(enum.IntEnum):
    """Type of a property or a matching value: enum value_type in internal.h."""

    NONE = 0
    STRING = 1
    NUMBER = 2
    DATA = 4


class Arguments:
    """The contents of a message, read in order.  Raises `struct.error` past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def u32(self) -> int:
        [number] = struct.unpack_from("<I", self._data, self._at)
        self._at += 4
        return int(number)

    def u64(self) -> int:
        [number] = struct.unpack_from("<Q", self._data, self._at)
        self._at += 8
        return int(number)

    def bytes(self) -> bytes:
        length = self.u32()
        found = self._data[self._at : self._at + length]
        self._at += length
        return found

    def text(self) -> str:
        return self.bytes().decode("utf-8", "surrogateescape")


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number & 0xFFFFFFFFFFFFFFFF)


def counted(data: bytes | bytearray | memoryview) -> bytes:
    return struct.pack("<I", len(data)) + data


def text(value: str) -> bytes:
    return counted(value.encode("utf-8", "surrogateescape"))


def frame(call: Call, payload: bytes, tag: int = 0, euid: int = 0) -> bytes:
    return HEADER.pack(len(payload), call, euid, tag) + payload
