"""Requests of processes to devices: user clients, as created by IOServiceOpen.  Runs in the kernel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.mac.kernel import errors
from tests.mac.kernel.device import CAPTURE, RELEASE, SPEEDS, UsbDevice
from tests.mac.kernel.errors import CallError
from tests.mac.kernel.hardware import Frame, Kind, Transfer
from tests.mac.kernel.registry import Entry
from tests.mac.kernel.wire import counted, u32, u64
from usbipd.protocol.constants import Speed
from usbipd.usb.descriptors import Endpoint

if TYPE_CHECKING:
    from tests.mac.kernel.connection import Connection

ANY = 0xFFFF  # kIOUSBFindInterfaceDontCare
PRESENT = 1 << 1  # kUSBInformationDeviceIsConnectedBit; only nonzero matters


class UserClient:
    """A process's connection to a service.  `entry` represents it in the registry."""

    class_name = ""

    def __init__(self, connection: Connection, service: Entry, device: UsbDevice) -> None:
        self.connection = connection
        self.kernel = connection.kernel
        self.device = device
        self.service = service
        self.entry = self.kernel.registry.add(
            service, (self.class_name, "IOUserClient"), properties={"IOUserClientCreator": connection.owner}
        )

    def check(self) -> None:
        if self.service.terminated:
            raise CallError(errors.NO_DEVICE)

    def _check_rights(self) -> None:
        if self.kernel.switches.open_needs_root and self.connection.euid != 0:
            raise CallError(errors.NOT_PERMITTED)

    async def close(self) -> None:
        self.kernel.registry.terminate(self.entry)

    def _start(self, transfer: Transfer, timeout: int) -> None:
        """Submits it; `timeout` is in milliseconds, 0: none."""
        self.device.submit(transfer)
        if timeout and transfer.status is None:
            asyncio.get_running_loop().call_later(
                timeout / 1000, lambda: self.kernel.spawn(self._time_out(transfer))
            )

    async def _time_out(self, transfer: Transfer) -> None:
        if transfer.status is None:
            transfer.cancelled = True
            await self.device.hardware.cancel([transfer], errors.TRANSACTION_TIMEOUT)

    def _complete(self, number: int, transfer: Transfer) -> None:
        self.device.ended(transfer)
        counts = self.kernel.switches.abort_reports_bytes or not transfer.cancelled
        frames = b"".join(u32(frame.status, frame.actual) for frame in transfer.frames)
        data = transfer.data if transfer.is_in else b""
        self.connection.complete(
            u64(number)
            + u32(transfer.status or 0, transfer.moved if counts else 0, len(transfer.frames))
            + frames
            + counted(data)
        )


class DeviceClient(UserClient):
    class_name = "AppleUSBHostDeviceUserClient"

    def open(self) -> None:
        self.check()
        self._check_rights()
        self.device.counters["opens"] += 1
        if self.device.opener not in (None, self):
            raise CallError(errors.EXCLUSIVE_ACCESS)
        self.device.opener = self
        self.service.properties["UsbExclusiveOwner"] = self.connection.owner

    def close_device(self) -> None:
        if self.device.opener is not self:
            raise CallError(errors.NOT_OPEN)
        self.device.opener = None
        self.service.properties.pop("UsbExclusiveOwner", None)

    async def close(self) -> None:
        await super().close()
        await self.device.client_closed(self)

    def state(self) -> bytes:
        device = self.device
        return u32(
            device.descriptor["bDeviceClass"],
            device.descriptor["idVendor"],
            device.descriptor["idProduct"],
            device.address,
            SPEEDS[device.hardware.speed],
            len(device.parsed),
            device.location,
            PRESENT,
            device.configuration,
        )

    def configuration_descriptor(self, index: int) -> bytes:
        if index >= len(self.device.parsed):
            raise CallError(errors.CONFIGURATION_NOT_FOUND)
        return counted(self.device.hardware.configurations[index])

    async def set_configuration(self, value: int) -> None:
        self.check()
        if self.device.opener is not self:
            raise CallError(errors.NOT_OPEN)
        await self.device.set_configuration(value)
        self.kernel.note(f"configuration {value} {self.device.location:08x}")

    def reset(self) -> None:
        self.check()
        self.device.counters["resets"] += 1

    async def re_enumerate(self, options: int, euid: int) -> None:
        self.check()
        device = self.device
        if options & CAPTURE:
            if euid != 0:
                raise CallError(errors.NOT_PRIVILEGED)
            if device.captor not in (None, self):
                raise CallError(errors.EXCLUSIVE_ACCESS)
            await device.capture(self)
            return
        if device.opener is not self:
            raise CallError(errors.NOT_OPEN)
        ends = (
            device.captor is self
            or bool(options & RELEASE)
            or self.kernel.switches.plain_reenumeration_ends_capture
        )
        device.captor = None
        work = device.enumerate_again(captured=device.captured and not ends)
        if self.kernel.switches.reenumeration_waits:
            await work
        else:
            self.kernel.spawn(work)

    async def abort_pipe_zero(self) -> None:
        self.check()
        await self.device.cancel(0, errors.ABORTED)

    def interfaces(self, *wanted: int) -> list[Entry]:
        self.check()
        names = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol", "bAlternateSetting")
        return [
            entry
            for entry in self.device.interfaces.values()
            if all(value in (ANY, entry.properties[name]) for name, value in zip(names, wanted, strict=True))
        ]

    def request(self, number: int, setup: bytes, timeout: int, data: bytes) -> None:
        self.check()
        if self.device.opener is not self:
            raise CallError(errors.NOT_OPEN)
        self._start(self._control(setup, data, lambda each: self._complete(number, each)), timeout)

    async def request_now(self, setup: bytes, limit: int, data: bytes) -> tuple[int, bytes]:
        self.check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(transfer: Transfer) -> None:
            self.device.ended(transfer)
            done.set_result(None)

        transfer = self._control(setup, data, ended)
        self._start(transfer, limit)
        await done
        return transfer.status or 0, u32(transfer.moved) + counted(transfer.data if transfer.is_in else b"")

    def _control(self, setup: bytes, data: bytes, on_end: object) -> Transfer:
        assert callable(on_end)
        self.device.counters["requests"] += 1
        length = int.from_bytes(setup[6:8], "little")
        return Transfer(Kind.CONTROL, setup[0] & 0x80, length, bytearray(data), on_end, setup)


class InterfaceClient(UserClient):
    class_name = "AppleUSBHostInterfaceUserClient"

    def __init__(self, connection: Connection, service: Entry, device: UsbDevice) -> None:
        super().__init__(connection, service, device)
        number = service.properties["bInterfaceNumber"]
        assert isinstance(number, int)
        self.interface = number

    def open(self) -> None:
        self.check()
        self._check_rights()
        device = self.device
        if (
            self.interface in device.exclusive_drivers
            or device.interface_openers.get(self.interface, self) is not self
        ):
            raise CallError(errors.EXCLUSIVE_ACCESS)
        device.interface_openers[self.interface] = self
        self.service.properties["UsbExclusiveOwner"] = self.connection.owner
        if device.captured and self.interface not in device.first_use:
            device.first_use.add(self.interface)
            if self.kernel.switches.halted_at_first_use:
                device.halted.update(
                    each.bEndpointAddress
                    for each in device.endpoints(self.interface)
                    if each.bmAttributes & 3 != Kind.ISOCHRONOUS
                )

    def check_open(self) -> None:
        self.check()
        if self.device.interface_openers.get(self.interface) is not self:
            raise CallError(errors.NOT_OPEN)

    async def close_interface(self) -> None:
        self.check_open()
        await self.device.interface_closed(self)

    async def close(self) -> None:
        await super().close()
        if self.device.interface_openers.get(self.interface) is self:
            await self.device.interface_closed(self)

    def state(self) -> bytes:
        self.check()
        return u32(len(self.device.endpoints(self.interface)), self.device.alternates.get(self.interface, 0))

    def pipe(self, number: int) -> Endpoint:
        endpoints = self.device.endpoints(self.interface)
        if not 0 < number <= len(endpoints):
            raise CallError(errors.UNKNOWN_PIPE)
        return endpoints[number - 1]

    def pipe_properties(self, number: int) -> bytes:
        self.check_open()
        return _properties(self.pipe(number))

    def endpoint_properties(self, alternate: int, number: int, direction: int) -> bytes:
        self.check()
        for each in self.device.endpoints(self.interface, alternate):
            if each.bEndpointAddress == number | direction << 7:
                return _properties(each)
        raise CallError(errors.NOT_FOUND)

    async def set_alternate(self, value: int) -> None:
        self.check_open()
        await self.device.set_interface(self.interface, value)

    async def abort_pipe(self, number: int) -> None:
        self.check_open()
        await self.device.cancel(self.pipe(number).bEndpointAddress, self.kernel.switches.abort_code)

    async def clear_stall(self, number: int) -> None:
        self.check_open()
        address = self.pipe(number).bEndpointAddress
        if self.kernel.switches.clear_stall_code is not None:
            await self.device.cancel(address, self.kernel.switches.clear_stall_code)
        code = await self.device.hardware.clear_halt(address)
        self.device.stalled.discard(address)
        self.device.halted.discard(address)
        if code != errors.SUCCESS:
            raise CallError(code)

    def _usable(self, number: int) -> Endpoint:
        self.check_open()
        endpoint = self.pipe(number)
        if endpoint.bEndpointAddress in self.device.stalled and self.kernel.switches.stalled_pipe_refuses:
            raise CallError(errors.PIPE_STALLED)
        return endpoint

    def transfer(self, pipe: int, number: int, timeout: int, length: int, data: bytes) -> None:
        endpoint = self._usable(pipe)
        self._start(
            Transfer(
                Kind(endpoint.bmAttributes & 3),
                endpoint.bEndpointAddress,
                length,
                bytearray(data),
                lambda each: self._complete(number, each),
            ),
            timeout,
        )

    async def write_now(self, pipe: int, data: bytes) -> int:
        endpoint = self._usable(pipe)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def ended(transfer: Transfer) -> None:
            self.device.ended(transfer)
            done.set_result(None)

        transfer = Transfer(
            Kind(endpoint.bmAttributes & 3), endpoint.bEndpointAddress, len(data), bytearray(data), ended
        )
        self._start(transfer, 0)
        await done
        return transfer.status or 0

    def isochronous(self, pipe: int, number: int, first: int, lengths: list[int], data: bytes | None) -> None:
        endpoint = self._usable(pipe)
        frames: list[Frame] = []
        total = 0
        for length in lengths:
            frames.append(Frame(total, length))
            total += length
        per_frame = 1.0 if self.device.hardware.speed == Speed.FULL else 8.0
        self._start(
            Transfer(
                Kind.ISOCHRONOUS,
                endpoint.bEndpointAddress,
                total,
                bytearray(total) if data is None else bytearray(data),
                lambda each: self._complete(number, each),
                frames=frames,
                first_frame=first,
                packets_per_frame=per_frame / 2 ** (endpoint.bInterval - 1),
            ),
            0,
        )


def _properties(endpoint: Endpoint) -> bytes:
    """The packet size of the descriptor, alone and times the transactions per microframe (USB 2.0, 9.6.6)."""
    size = endpoint.wMaxPacketSize & 0x7FF
    return u32(
        endpoint.bAlternateSetting,
        endpoint.bEndpointAddress >> 7,
        endpoint.bEndpointAddress & 0x0F,
        endpoint.bmAttributes & 3,
        size,
        size * (1 + (endpoint.wMaxPacketSize >> 11 & 3)),
        endpoint.bInterval,
    )
