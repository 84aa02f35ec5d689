"""One process of the Mac: its calls, and the kernel's events for it.  Runs in the kernel.

When the socket is closed, the process is dead: its user clients are closed immediately, as Mach closes its
ports.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mac.kernel import errors
from tests.mac.kernel.clients import DeviceClient, InterfaceClient, UserClient
from tests.mac.kernel.device import UsbDevice
from tests.mac.kernel.errors import CallError
from tests.mac.kernel.packets import bus_frame
from tests.mac.kernel.power import PowerListener
from tests.mac.kernel.registry import Entry, Iterator, Properties, Subscription, Value
from tests.mac.kernel.wire import HEADER, Arguments, Call, ValueType, counted, frame, text, u32, u64

if TYPE_CHECKING:
    from tests.mac.kernel.kernel import Kernel

Result = bytes | None
FOR_DEVICES = 2  # kIOUSBDeviceUserClientTypeID in usb.h


class Connection(asyncio.Protocol):
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.pid = 0
        self.euid = 0
        self.owner = ""
        """The value of IOUserClientCreator and UsbExclusiveOwner."""
        self.uses_the_mac = False
        """Whether it has called IOKit; a test only controls."""
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._objects: dict[int, Iterator] = {}
        self._clients: dict[int, UserClient] = {}
        self._listeners: dict[int, PowerListener] = {}
        self._completions: list[bytes] | None = None
        """Completions of transfers that end while they are started: they follow the answer."""

    # ---- the socket --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid, _, _ = struct.unpack("iII", peer)
        try:
            name = Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            name = "?"
        self.owner = f"pid {self.pid}, {name}"
        self.kernel.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            length, call, euid, tag = HEADER.unpack_from(self._buffer)
            if len(self._buffer) < HEADER.size + length:
                return
            payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            self.euid = euid
            self._serve(Call(call), tag, payload)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.kernel.connections.discard(self)
        self.kernel.spawn(self._give_up())

    async def _give_up(self) -> None:
        for each in self._objects.values():
            if isinstance(each, Subscription):
                self.kernel.registry.subscriptions.remove(each)
        for listener in self._listeners.values():
            self.kernel.power.remove(listener)
        for client in sorted(self._clients.values(), key=lambda each: isinstance(each, DeviceClient)):
            await client.close()
        self._clients.clear()
        self.kernel.changed()

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def complete(self, payload: bytes) -> None:
        message = frame(Call.COMPLETION, payload)
        if self._completions is None:
            self._send(message)
        else:
            self._completions.append(message)

    def _serve(self, call: Call, tag: int, payload: bytes) -> None:
        arguments = Arguments(payload)
        if call == Call.CONTROL:
            self.kernel.spawn(self._control(tag, payload))
            return
        self.uses_the_mac = True
        if (code := self.kernel.failure(call)) is not None:
            self._reply(tag, code)
            return
        self._completions = []
        try:
            result = _CALLS[call](self, arguments)
        except CallError as error:
            self._reply(tag, error.code)
        else:
            if isinstance(result, bytes | None):
                self._reply(tag, errors.SUCCESS, result or b"")
            else:
                self.kernel.spawn(self._finish(tag, result))
        completions, self._completions = self._completions, None
        for message in completions:
            self._send(message)

    async def _finish(self, tag: int, result: Awaitable[Result]) -> None:
        try:
            payload = await result
        except CallError as error:
            self._reply(tag, error.code)
        else:
            self._reply(tag, errors.SUCCESS, payload or b"")

    def _reply(self, tag: int, code: int, payload: bytes = b"") -> None:
        self.kernel.changed()
        if tag:
            self._send(frame(Call.REPLY, u32(code) + payload, tag))

    async def _control(self, tag: int, payload: bytes) -> None:
        name, positional, named = pickle.loads(payload)
        try:
            answer: tuple[bool, object] = (True, await self.kernel.control.call(name, positional, named))
        except Exception as error:
            answer = (False, error)
        self._reply(tag, errors.SUCCESS, pickle.dumps(answer))

    # ---- the registry ------------------------------------------------------------------------------

    def _entry(self, arguments: Arguments) -> Entry:
        entry = self.kernel.registry.entries.get(arguments.u64())
        if entry is None:
            raise CallError(errors.BAD_ARGUMENT)
        return entry

    def _iterator(self, arguments: Arguments) -> Iterator:
        iterator = self._objects.get(arguments.u64())
        if iterator is None:
            raise CallError(errors.BAD_ARGUMENT)
        return iterator

    def _new_iterator(self, iterator: Iterator) -> bytes:
        number = self.kernel.next_number()
        self._objects[number] = iterator
        return u64(number)

    def match(self, arguments: Arguments) -> bytes:
        class_name, properties = _matching(arguments)
        return self._new_iterator(Iterator(self.kernel.registry.find(class_name, properties)))

    def subscribe(self, arguments: Arguments) -> bytes:
        kind = arguments.text()
        class_name, properties = _matching(arguments)
        number = self.kernel.next_number()
        subscription = Subscription(
            kind, class_name, properties, lambda: self._send(frame(Call.NOTIFICATION, u64(number)))
        )
        self._objects[number] = subscription
        self.kernel.registry.subscribe(subscription)
        return u64(number)

    def iterator_next(self, arguments: Arguments) -> bytes:
        iterator = self._iterator(arguments)
        self.kernel.iteration()
        entry = iterator.next()
        return u64(entry.registry_id if entry else 0)

    def iterator_valid(self, arguments: Arguments) -> bytes:
        return u32(int(self._iterator(arguments).valid and not self.kernel.restless))

    def iterator_reset(self, arguments: Arguments) -> None:
        self._iterator(arguments).reset()

    def release(self, arguments: Arguments) -> None:
        iterator = self._objects.pop(arguments.u64(), None)
        if isinstance(iterator, Subscription):
            self.kernel.registry.subscriptions.remove(iterator)

    def children(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        return self._new_iterator(Iterator(list(entry.children), entry))

    def parent(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        parent = entry.usb_parent if arguments.text() == "IOUSB" else entry.parent
        if parent is None:
            raise CallError(errors.NO_DEVICE)
        return u64(parent.registry_id)

    def describe(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        return text(entry.classes[0]) + text(entry.name) + u64(entry.registry_id)

    def property(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        value = entry.properties.get(arguments.text())
        if isinstance(value, int):
            return u32(ValueType.NUMBER) + u64(value)
        if isinstance(value, str):
            return u32(ValueType.STRING) + text(value)
        if isinstance(value, bytes):
            return u32(ValueType.DATA) + counted(value)
        return u32(ValueType.NONE)

    def conforms(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        return u32(int(arguments.text() in entry.classes))

    async def wait_quiet(self, arguments: Arguments) -> None:
        """Always quiet; returns after a moment, as on a Mac."""
        await asyncio.sleep(min(arguments.u64() / 1e9, 0.001))

    def system_version(self, arguments: Arguments) -> bytes:
        return text(self.kernel.switches.macos_version)

    # ---- power -------------------------------------------------------------------------------------

    def power_register(self, arguments: Arguments) -> bytes:
        number = self.kernel.next_number()

        def tell(message: int, change: int) -> None:
            self._send(frame(Call.POWER, u64(number) + u32(message) + u64(change)))

        self._listeners[number] = PowerListener(tell)
        self.kernel.power.add(self._listeners[number])
        return u64(number)

    def power_deregister(self, arguments: Arguments) -> None:
        self.kernel.power.remove(self._listener(arguments))

    def power_allow(self, arguments: Arguments) -> None:
        listener = self._listener(arguments)
        self.kernel.power.answer(listener, arguments.u64(), bool(arguments.u32()))

    def _listener(self, arguments: Arguments) -> PowerListener:
        listener = self._listeners.get(arguments.u64())
        if listener is None:
            raise CallError(errors.BAD_ARGUMENT)
        return listener

    # ---- user clients ------------------------------------------------------------------------------

    def service_open(self, arguments: Arguments) -> bytes:
        entry = self._entry(arguments)
        kind = arguments.u32()
        device = entry.subject
        if entry.terminated or not isinstance(device, UsbDevice):
            raise CallError(errors.NO_DEVICE)
        number = self.kernel.next_number()
        client = DeviceClient if kind == FOR_DEVICES else InterfaceClient
        self._clients[number] = client(self, entry, device)
        return u64(number)

    async def service_close(self, arguments: Arguments) -> None:
        client = self._clients.pop(arguments.u64(), None)
        if client is None:
            raise CallError(errors.BAD_ARGUMENT)
        await client.close()

    def _device(self, arguments: Arguments) -> DeviceClient:
        client = self._clients.get(arguments.u64())
        if not isinstance(client, DeviceClient):
            raise CallError(errors.BAD_ARGUMENT)
        return client

    def _interface(self, arguments: Arguments) -> InterfaceClient:
        client = self._clients.get(arguments.u64())
        if not isinstance(client, InterfaceClient):
            raise CallError(errors.BAD_ARGUMENT)
        return client

    def find_interfaces(self, arguments: Arguments) -> bytes:
        device = self._device(arguments)
        return self._new_iterator(Iterator(device.interfaces(*(arguments.u32() for _ in range(4)))))

    def device_request(self, arguments: Arguments) -> None:
        device, number = self._device(arguments), arguments.u64()
        device.request(number, arguments.bytes(), arguments.u32(), arguments.bytes())

    async def device_request_now(self, arguments: Arguments) -> bytes:
        device = self._device(arguments)
        code, payload = await device.request_now(arguments.bytes(), arguments.u32(), arguments.bytes())
        if code not in (errors.SUCCESS, errors.OVERRUN):
            raise CallError(code)
        return payload

    async def re_enumerate(self, arguments: Arguments) -> None:
        euid = self.euid
        await self._device(arguments).re_enumerate(arguments.u32(), euid)

    def endpoint_properties(self, arguments: Arguments) -> bytes:
        interface = self._interface(arguments)
        return interface.endpoint_properties(arguments.u32(), arguments.u32(), arguments.u32())

    def read(self, arguments: Arguments) -> None:
        interface, pipe, number = self._interface(arguments), arguments.u32(), arguments.u64()
        interface.transfer(pipe, number, arguments.u32(), arguments.u32(), b"")

    def write(self, arguments: Arguments) -> None:
        interface, pipe, number = self._interface(arguments), arguments.u32(), arguments.u64()
        timeout, data = arguments.u32(), arguments.bytes()
        interface.transfer(pipe, number, timeout, len(data), data)

    async def write_now(self, arguments: Arguments) -> None:
        interface = self._interface(arguments)
        if (code := await interface.write_now(arguments.u32(), arguments.bytes())) != errors.SUCCESS:
            raise CallError(code)

    def isochronous(self, arguments: Arguments, *, reads: bool) -> None:
        interface, pipe, number = self._interface(arguments), arguments.u32(), arguments.u64()
        first, count = arguments.u64(), arguments.u32()
        lengths = [arguments.u32() for _ in range(count)]
        interface.isochronous(pipe, number, first, lengths, None if reads else arguments.bytes())


def _matching(arguments: Arguments) -> tuple[str, Properties]:
    class_name = arguments.text()
    properties: Properties = {}
    for _ in range(arguments.u32()):
        key, kind = arguments.text(), arguments.u32()
        value: Value = arguments.text() if kind == ValueType.STRING else _signed(arguments.u64())
        properties[key] = value
    return class_name, properties


def _signed(number: int) -> int:
    return number - (1 << 64) if number & 1 << 63 else number


Handler = Callable[[Connection, Arguments], Result | Awaitable[Result]]


def _of_device(method: Callable[..., object], numbers: int = 0) -> Handler:
    """A call of a device's user client that takes so many numbers."""

    def handler(connection: Connection, arguments: Arguments) -> Result | Awaitable[Result]:
        client = connection._device(arguments)
        return method(client, *(arguments.u32() for _ in range(numbers)))  # type: ignore[return-value]

    return handler


def _of_interface(method: Callable[..., object], numbers: int = 0) -> Handler:
    def handler(connection: Connection, arguments: Arguments) -> Result | Awaitable[Result]:
        client = connection._interface(arguments)
        return method(client, *(arguments.u32() for _ in range(numbers)))  # type: ignore[return-value]

    return handler


_CALLS: Final[dict[Call, Handler]] = {
    Call.MATCH: Connection.match,
    Call.ITERATOR_NEXT: Connection.iterator_next,
    Call.ITERATOR_VALID: Connection.iterator_valid,
    Call.ITERATOR_RESET: Connection.iterator_reset,
    Call.OBJECT_RELEASE: Connection.release,
    Call.CHILDREN: Connection.children,
    Call.PARENT: Connection.parent,
    Call.DESCRIBE: Connection.describe,
    Call.PROPERTY: Connection.property,
    Call.CONFORMS: Connection.conforms,
    Call.WAIT_QUIET: Connection.wait_quiet,
    Call.SUBSCRIBE: Connection.subscribe,
    Call.SYSTEM_VERSION: Connection.system_version,
    Call.POWER_REGISTER: Connection.power_register,
    Call.POWER_DEREGISTER: Connection.power_deregister,
    Call.POWER_ALLOW: Connection.power_allow,
    Call.SERVICE_OPEN: Connection.service_open,
    Call.SERVICE_CLOSE: Connection.service_close,
    Call.DEVICE_OPEN: _of_device(DeviceClient.open),
    Call.DEVICE_CLOSE: _of_device(DeviceClient.close_device),
    Call.DEVICE_STATE: _of_device(DeviceClient.state),
    Call.CONFIGURATION_DESCRIPTOR: _of_device(DeviceClient.configuration_descriptor, 1),
    Call.SET_CONFIGURATION: _of_device(DeviceClient.set_configuration, 1),
    Call.RESET_DEVICE: _of_device(DeviceClient.reset),
    Call.RE_ENUMERATE: Connection.re_enumerate,
    Call.SUSPEND: _of_device(lambda client, suspended: None, 1),
    Call.ABORT_PIPE_ZERO: _of_device(DeviceClient.abort_pipe_zero),
    Call.FIND_INTERFACES: Connection.find_interfaces,
    Call.DEVICE_REQUEST: Connection.device_request,
    Call.DEVICE_REQUEST_SYNC: Connection.device_request_now,
    Call.INTERFACE_OPEN: _of_interface(InterfaceClient.open),
    Call.INTERFACE_CLOSE: _of_interface(InterfaceClient.close_interface),
    Call.INTERFACE_STATE: _of_interface(InterfaceClient.state),
    Call.PIPE_PROPERTIES: _of_interface(InterfaceClient.pipe_properties, 1),
    Call.ENDPOINT_PROPERTIES: Connection.endpoint_properties,
    Call.SET_ALTERNATE: _of_interface(InterfaceClient.set_alternate, 1),
    Call.ABORT_PIPE: _of_interface(InterfaceClient.abort_pipe, 1),
    Call.CLEAR_STALL: _of_interface(InterfaceClient.clear_stall, 1),
    Call.READ: Connection.read,
    Call.WRITE: Connection.write,
    Call.WRITE_SYNC: Connection.write_now,
    Call.READ_ISOC: lambda connection, arguments: connection.isochronous(arguments, reads=True),
    Call.WRITE_ISOC: lambda connection, arguments: connection.isochronous(arguments, reads=False),
    Call.FRAME_NUMBER: lambda connection, arguments: u64(bus_frame()),
}
