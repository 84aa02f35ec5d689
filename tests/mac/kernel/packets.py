"""A simulated device that a test controls packet by packet.  Runs in the kernel.

IN: a transfer receives the test's packets one by one, until one is short or the buffer is full; an abort in
between keeps the received data.  OUT: the device accepts a packet for each credit; without a limit, all
immediately.
"""

import asyncio
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from tests.mac.kernel import errors
from tests.mac.kernel.hardware import Hardware, Kind, Transfer
from usbipd.protocol.constants import Speed
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.usb.descriptors import parse_configuration

_SETUP: Final = struct.Struct("<BBHHH")
GET_STATUS, CLEAR_FEATURE, SET_FEATURE, GET_DESCRIPTOR = 0, 1, 3, 6  # USB 2.0, table 9-4
GET_CONFIGURATION, SET_CONFIGURATION, GET_INTERFACE, SET_INTERFACE = 8, 9, 10, 11


@dataclass(eq=False)
class EndpointState:
    """The state of an endpoint.  `credit`: packets that it accepts from the host; None: all."""

    max_packet: int
    kind: Kind
    queue: deque[Transfer] = field(default_factory=deque)
    to_send: deque[bytes] = field(default_factory=deque)
    taken: bytearray = field(default_factory=bytearray)
    taken_packets: int = 0
    credit: int | None = None
    halted: bool = False


def bus_frame() -> int:
    """The number of the current frame: milliseconds."""
    return int(time.monotonic() * 1000)


class PacketDevice(Hardware):
    """All endpoints of all settings; the kernel handles which setting is current."""

    def __init__(self, speed: Speed = Speed.HIGH, strings: tuple[str, str, str] | None = None) -> None:
        self.speed = speed
        self.strings = strings or ("Software", "Loopback", "0001")
        self.endpoints: dict[int, EndpointState] = {}
        self.configuration = 0
        self.alternates: dict[int, int] = {}
        self.requests: list[tuple[bytes, bytes]] = []
        """Setup and data of each control request that reached the device."""
        self.answers: dict[int, bytes | None] = {}
        """Answers to vendor IN requests, by bRequest; None: STALL."""
        self.holds_control = False
        """Whether it answers control requests with NAK."""
        self._held: deque[Transfer] = deque()
        self.holds_isochronous = False
        """Whether its isochronous transfers wait although their frames have passed."""
        self._late: list[Transfer] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self.refuses_configuration: int | None = None
        """The IOReturn with which the next SET_CONFIGURATION or SET_INTERFACE fails."""

    def _learn_endpoints(self) -> None:
        for raw in self.configurations:
            for each in parse_configuration(raw).endpoints:
                self.endpoints[each.bEndpointAddress] = EndpointState(
                    each.wMaxPacketSize & 0x7FF, Kind(each.bmAttributes & 3)
                )

    # ---- control by a test -------------------------------------------------------------------------

    def give(self, address: int, data: bytes) -> None:
        """Data for the host, in packets of the endpoint's size; empty: one packet of no bytes."""
        size = self.endpoints[address].max_packet
        self.give_packets(address, [data[at : at + size] for at in range(0, max(len(data), 1), size)])

    def give_packets(self, address: int, packets: list[bytes]) -> None:
        """Queues these packets, which may be short; for an isochronous endpoint, one for each frame."""
        endpoint = self.endpoints[address]
        endpoint.to_send += packets
        self._run(endpoint)

    def set_credit(self, address: int, packets: int | None) -> None:
        endpoint = self.endpoints[address]
        endpoint.credit = packets
        self._run(endpoint)

    def stall(self, address: int) -> None:
        """The endpoint is halted: transfers end with STALL until the host clears it."""
        endpoint = self.endpoints[address]
        endpoint.halted = True
        self._run(endpoint)

    def release_control(self) -> None:
        self.holds_control = False
        while self._held and not self.holds_control:
            self._control(self._held.popleft())

    def release_isochronous(self) -> None:
        self.holds_isochronous = False
        late, self._late = self._late, []
        for transfer in late:
            self._due(transfer)

    # ---- transfers ---------------------------------------------------------------------------------

    def submit(self, transfer: Transfer) -> None:
        if transfer.kind == Kind.CONTROL:
            if self.holds_control:
                self._held.append(transfer)
            else:
                self._control(transfer)
            return
        endpoint = self.endpoints[transfer.address]
        endpoint.queue.append(transfer)
        if transfer.kind == Kind.ISOCHRONOUS:
            frames = len(transfer.frames) / transfer.packets_per_frame
            end = (transfer.first_frame + frames) / 1000
            self._at(end, transfer)
        else:
            self._run(endpoint)

    def _at(self, end: float, transfer: Transfer) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def due() -> None:
            self._timers.discard(timer)
            self._due(transfer)

        timer = loop.call_at(loop.time() + max(0.0, end - time.monotonic()), due)
        self._timers.add(timer)

    def _due(self, transfer: Transfer) -> None:
        if self.holds_isochronous:
            self._late.append(transfer)
        elif transfer.status is None:
            self._isochronous(transfer)

    def _run(self, endpoint: EndpointState) -> None:
        if endpoint.kind == Kind.ISOCHRONOUS:
            return
        while endpoint.queue:
            transfer = endpoint.queue[0]
            if endpoint.halted:
                status: int | None = errors.PIPE_STALLED
            else:
                status = (
                    self._move_in(endpoint, transfer)
                    if transfer.is_in
                    else self._move_out(endpoint, transfer)
                )
            if status is None:
                return
            endpoint.queue.popleft()
            transfer.end(status)
            if status == errors.PIPE_STALLED:
                return  # the host's pipe is halted as well: queued transfers wait there

    def _move_in(self, endpoint: EndpointState, transfer: Transfer) -> int | None:
        if transfer.length == 0:
            return errors.SUCCESS
        while endpoint.to_send:
            packet = endpoint.to_send.popleft()
            room = transfer.room
            transfer.data += packet[:room]
            if len(packet) > room:
                return errors.OVERRUN
            if len(packet) < endpoint.max_packet or transfer.room == 0:
                return errors.SUCCESS
        return None

    def _move_out(self, endpoint: EndpointState, transfer: Transfer) -> int | None:
        while endpoint.credit != 0:
            packet = bytes(transfer.data[transfer.moved : transfer.moved + endpoint.max_packet])
            if endpoint.credit is not None:
                endpoint.credit -= 1
            transfer.moved += len(packet)
            self._take(transfer.address, endpoint, packet)
            if transfer.moved == len(transfer.data):
                return errors.SUCCESS
        return None

    def _take(self, address: int, endpoint: EndpointState, packet: bytes) -> None:
        endpoint.taken += packet
        endpoint.taken_packets += 1

    def _isochronous(self, transfer: Transfer) -> None:
        endpoint = self.endpoints[transfer.address]
        endpoint.queue.remove(transfer)
        for frame in transfer.frames:
            if not transfer.is_in:
                packet = bytes(transfer.data[frame.offset : frame.offset + frame.length])
                frame.actual = frame.length
                self._take(transfer.address, endpoint, packet)
                continue
            packet = endpoint.to_send.popleft() if endpoint.to_send else b""
            frame.actual = min(len(packet), frame.length)
            transfer.data[frame.offset : frame.offset + frame.actual] = packet[: frame.actual]
            if len(packet) > frame.length:
                frame.status = errors.OVERRUN
            elif len(packet) < frame.length:
                frame.status = errors.UNDERRUN
        transfer.moved = sum(frame.actual for frame in transfer.frames)
        transfer.end(errors.SUCCESS)

    async def cancel(self, transfers: list[Transfer], code: int) -> None:
        for transfer in transfers:
            waiting = self._held if transfer.kind == Kind.CONTROL else self.endpoints[transfer.address].queue
            if transfer in waiting:
                waiting.remove(transfer)
                transfer.end(code)

    # ---- control requests --------------------------------------------------------------------------

    def _control(self, transfer: Transfer) -> None:
        self.requests.append((transfer.setup, b"" if transfer.is_in else bytes(transfer.data)))
        answer = self._answer(*_SETUP.unpack(transfer.setup))
        if answer is None:
            transfer.end(errors.PIPE_STALLED)
            return
        if transfer.is_in:
            transfer.data += answer[: transfer.length]
        else:
            transfer.moved = len(transfer.data)
        transfer.end(errors.SUCCESS)

    def _answer(self, kind: int, request: int, value: int, index: int, length: int) -> bytes | None:
        if kind & 0x60:
            return self.answers.get(request, bytes([request]) * length)
        if kind == 0x80 and request == GET_DESCRIPTOR:
            return self._descriptor(value >> 8, value & 0xFF)
        if kind == 0x80 and request == GET_CONFIGURATION:
            return bytes([self.configuration])
        if kind == 0x81 and request == GET_INTERFACE:
            return bytes([self.alternates.get(index, 0)])
        if request == GET_STATUS and kind & 0x80:
            endpoint = self.endpoints.get(index) if kind == 0x82 else None
            return bytes([int(endpoint is not None and endpoint.halted), 0])
        if kind == 0x02 and request in (CLEAR_FEATURE, SET_FEATURE) and index in self.endpoints:
            self.endpoints[index].halted = request == SET_FEATURE
            return b""
        if kind == 0x00 and request == SET_CONFIGURATION:
            self._configure(value)
            return b""
        if kind == 0x01 and request == SET_INTERFACE:
            self.alternates[index] = value
            return b""
        return None

    def _descriptor(self, kind: int, index: int) -> bytes | None:
        if kind == 1:
            return self.device_descriptor
        if kind == 2 and index < len(self.configurations):
            return self.configurations[index]
        if kind == 3 and index == 0:
            return bytes((4, 3, 9, 4))
        if kind == 3 and index <= len(self.strings):
            text = self.strings[index - 1].encode("utf-16-le")
            return bytes((2 + len(text), 3)) + text
        return None

    def _configure(self, value: int) -> None:
        self.configuration = value
        self.alternates.clear()
        for endpoint in self.endpoints.values():
            endpoint.halted = False

    async def set_configuration(self, value: int) -> int:
        if (code := self._refusal()) is not None:
            return code
        self.requests.append((_SETUP.pack(0, SET_CONFIGURATION, value, 0, 0), b""))
        self._configure(value)
        return errors.SUCCESS

    async def set_interface(self, interface: int, alternate: int) -> int:
        if (code := self._refusal()) is not None:
            return code
        self.requests.append((_SETUP.pack(1, SET_INTERFACE, alternate, interface, 0), b""))
        self.alternates[interface] = alternate
        return errors.SUCCESS

    def _refusal(self) -> int | None:
        code, self.refuses_configuration = self.refuses_configuration, None
        return code

    async def clear_halt(self, address: int) -> int:
        self.requests.append((_SETUP.pack(2, CLEAR_FEATURE, 0, address, 0), b""))
        self.endpoints[address].halted = False
        return errors.SUCCESS

    def reset(self) -> None:
        self._configure(0)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for endpoint in self.endpoints.values():
            endpoint.to_send.clear()
            endpoint.credit = None

    def forget(self) -> None:
        """Clears the state of the last test: data, credit, halts, requests."""
        self.requests.clear()
        for endpoint in self.endpoints.values():
            endpoint.to_send.clear()
            endpoint.taken.clear()
            endpoint.credit = None
            endpoint.halted = False


BULK_SIZES: Final = {Speed.LOW: 8, Speed.FULL: 64, Speed.HIGH: 512, Speed.SUPER: 1024}


class Loopback(PacketDevice):
    """Two configurations; the first has two interfaces, its interface 0 two settings.

    Interface 0: bulk 0x01, 0x81, interrupt 0x02, 0x82; in setting 1 isochronous 0x03, 0x83, too.  Interface
    1: bulk 0x04, 0x84.  Configuration 2 has interface 0 with only the bulk endpoints.
    """

    def __init__(
        self, speed: Speed = Speed.HIGH, strings: tuple[str, str, str] | None = None, *, echo: bool = False
    ) -> None:
        super().__init__(speed, strings)
        self.echo = echo
        size = BULK_SIZES[speed]
        usb = 0x0300 if speed == Speed.SUPER else 0x0200
        bulk = [endpoint_descriptor(0x01, 2, size, 0), endpoint_descriptor(0x81, 2, size, 0)]
        interrupt = [endpoint_descriptor(0x02, 3, 8, 4), endpoint_descriptor(0x82, 3, 8, 4)]
        isochronous = [endpoint_descriptor(0x03, 1, 192, 1), endpoint_descriptor(0x83, 1, 192, 1)]
        self.device_descriptor = device_descriptor(
            0x01F9,
            bcdUSB=usb,
            bMaxPacketSize0=9 if speed == Speed.SUPER else 8 if speed == Speed.LOW else 64,
            bNumConfigurations=2,
        )
        self.configurations = [
            configuration_descriptor(
                interface_descriptor(0, 4, 0xFF),
                *bulk,
                *interrupt,
                interface_descriptor(0, 6, 0xFF, bAlternateSetting=1),
                *bulk,
                *interrupt,
                *isochronous,
                interface_descriptor(1, 2, 0xFF),
                endpoint_descriptor(0x04, 2, size, 0),
                endpoint_descriptor(0x84, 2, size, 0),
            ),
            configuration_descriptor(interface_descriptor(0, 2, 0xFF), *bulk, bConfigurationValue=2),
        ]
        self._learn_endpoints()

    def _take(self, address: int, endpoint: EndpointState, packet: bytes) -> None:
        super()._take(address, endpoint, packet)
        if self.echo:
            back = self.endpoints[address | 0x80]
            back.to_send.append(packet)
            self._run(back)


class Hub(PacketDevice):
    """A hub; the kernel handles the devices below it."""

    def __init__(self, speed: Speed = Speed.HIGH, strings: tuple[str, str, str] | None = None) -> None:
        super().__init__(speed, strings or ("Software", "Hub", ""))
        self.device_descriptor = device_descriptor(0x01FA, bcdUSB=0x0200, bDeviceClass=9)
        self.configurations = [
            configuration_descriptor(interface_descriptor(0, 1, 9), endpoint_descriptor(0x81, 3, 1, 12))
        ]
        self._learn_endpoints()
