"""A process of a software Mac, simulated by a test: it talks to the kernel without libusb.  Runs in tests."""

import socket
from dataclasses import dataclass
from typing import Final

from tests.mac.kernel import errors
from tests.mac.kernel.device import signed
from tests.mac.kernel.errors import CallError
from tests.mac.kernel.wire import HEADER, Arguments, Call, ValueType, counted, frame, text, u32, u64
from tests.mac.mac import Device, Mac

PATIENCE: Final = 10.0
CAPTURE: Final = 1 << 30
DEVICE, INTERFACE = 2, 3


@dataclass
class Completion:
    number: int
    code: int
    arg0: int
    frames: list[tuple[int, int]]
    data: bytes


class Process:
    """Its calls raise `CallError` for an IOReturn other than 0."""

    def __init__(self, mac: Mac, *, euid: int = 0) -> None:
        self.euid = euid
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(mac.path))
        self._reader = self._socket.makefile("rb")
        self._events: list[tuple[Call, bytes]] = []
        self._tag = 0

    def die(self) -> None:
        self._reader.close()
        self._socket.close()

    def call(self, call: Call, *payload: bytes) -> Arguments:
        self._tag += 1
        self._socket.sendall(frame(call, b"".join(payload), self._tag, self.euid))
        while True:
            kind, tag, arguments = self._read()
            if kind != Call.REPLY:
                self._events.append((kind, arguments))
                continue
            assert tag == self._tag
            answer = Arguments(arguments)
            if (code := answer.u32()) != errors.SUCCESS:
                raise CallError(code)
            return answer

    def _read(self) -> tuple[Call, int, bytes]:
        length, kind, _, tag = HEADER.unpack(self._reader.read(HEADER.size))
        return Call(kind), tag, self._reader.read(length)

    def event(self, kind: Call) -> Arguments:
        """The next event of this kind."""
        while True:
            for each in self._events:
                if each[0] == kind:
                    self._events.remove(each)
                    return Arguments(each[1])
            found, _, arguments = self._read()
            self._events.append((found, arguments))

    def completion(self) -> Completion:
        event = self.event(Call.COMPLETION)
        number, code, arg0 = event.u64(), event.u32(), event.u32()
        frames = [(event.u32(), event.u32()) for _ in range(event.u32())]
        return Completion(number, code, arg0, frames, event.bytes())

    # ---- the registry ------------------------------------------------------------------------------

    def find(self, class_name: str, device: Device) -> list[int]:
        """Registry ids of the entries of this class at the device's location."""
        location = text("locationID") + u32(ValueType.NUMBER) + u64(signed(device.location))
        return self.all_of(self.call(Call.MATCH, text(class_name), u32(1), location).u64())

    def all_of(self, iterator: int) -> list[int]:
        found = []
        while (entry := self.call(Call.ITERATOR_NEXT, u64(iterator)).u64()) != 0:
            found.append(entry)
        return found

    def subscribe(self, kind: str, class_name: str) -> int:
        return self.call(Call.SUBSCRIBE, text(kind), text(class_name), u32(0)).u64()

    def property(self, entry: int, name: str) -> int | str | bytes | None:
        answer = self.call(Call.PROPERTY, u64(entry), text(name))
        kind = answer.u32()
        if kind == ValueType.NUMBER:
            return answer.u64()
        if kind == ValueType.NONE:
            return None
        return answer.text() if kind == ValueType.STRING else answer.bytes()

    # ---- a device ----------------------------------------------------------------------------------

    def open_device(self, device: Device) -> int:
        """Opens the device; returns its user client."""
        [entry] = self.find("IOUSBHostDevice", device)
        client = self.call(Call.SERVICE_OPEN, u64(entry), u32(DEVICE)).u64()
        self.call(Call.DEVICE_OPEN, u64(client))
        return client

    def open_interface(self, device: Device, number: int = 0) -> int:
        """Opens an interface; returns its user client."""
        for entry in self.find("IOUSBHostInterface", device):
            if self.property(entry, "bInterfaceNumber") == number:
                client = self.call(Call.SERVICE_OPEN, u64(entry), u32(INTERFACE)).u64()
                self.call(Call.INTERFACE_OPEN, u64(client))
                return client
        raise CallError(errors.INTERFACE_NOT_FOUND)

    def capture(self, device: Device) -> int:
        """Captures the device and sets configuration 1; returns its user client."""
        client = self.open_device(device)
        self.call(Call.RE_ENUMERATE, u64(client), u32(CAPTURE))
        self.call(Call.DEVICE_OPEN, u64(client))
        self.call(Call.SET_CONFIGURATION, u64(client), u32(1))
        return client

    def read(self, interface: int, pipe: int, number: int, length: int, timeout: int = 0) -> None:
        self.call(Call.READ, u64(interface), u32(pipe), u64(number), u32(timeout), u32(length))

    def write(self, interface: int, pipe: int, number: int, data: bytes) -> None:
        self.call(Call.WRITE, u64(interface), u32(pipe), u64(number), u32(0), counted(data))
