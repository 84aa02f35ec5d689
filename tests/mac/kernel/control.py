"""A test's control of a kernel: each public method can be called by name, over the socket.  Runs in the
kernel.

`Mac` in tests/mac/mac.py is the other side.  Devices are numbers here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.mac.kernel import errors
from tests.mac.kernel.device import UsbDevice
from tests.mac.kernel.packets import PacketDevice
from tests.mac.kernel.power import CAN_SLEEP, POWERED_ON, WILL_SLEEP
from tests.mac.kernel.registry import Value
from tests.mac.kernel.shelf import make_hardware
from tests.mac.kernel.wire import Call

if TYPE_CHECKING:
    from tests.mac.kernel.kernel import Kernel

TIMEOUT = 10.0
"""Seconds until a wait fails."""


class Control:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def call(self, name: str, positional: Sequence[object], named: dict[str, object]) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        result = getattr(self, name)(*positional, **named)
        return await result if inspect.isawaitable(result) else result

    # ---- the whole Mac -----------------------------------------------------------------------------

    def switch(self, **values: object) -> None:
        """Sets switches, from now on."""
        names = {each.name for each in dataclasses.fields(self._kernel.switches)}
        for name, value in values.items():
            if name not in names:
                raise AttributeError(f"no switch {name}")
            setattr(self._kernel.switches, name, value)

    def journal(self) -> list[str]:
        """Events of devices since the last call."""
        lines, self._kernel.journal = self._kernel.journal, []
        return lines

    def problems(self) -> list[str]:
        """Internal errors of the kernel; a fixture checks them at the end of each test."""
        return self._kernel.problems

    def processes(self) -> list[int]:
        """The pids of the processes that are connected, without those that only control."""
        return sorted(each.pid for each in self._kernel.connections if each.uses_the_mac)

    def fail(self, call: str, code: int, times: int = 1) -> None:
        """The next calls of this name (`Call`) fail with an IOReturn."""
        self._kernel.fail(Call[call], code, times)

    async def sleep(self) -> bool:
        """The system asks, and sleeps unless one refuses; whether it does."""
        if not await self._kernel.power.ask(CAN_SLEEP):
            return False
        await self._kernel.power.ask(WILL_SLEEP)
        if self._kernel.switches.sleep_ends_transfers:
            for device in self._kernel.devices.values():
                await device.cancel_all(errors.NOT_RESPONDING)
        return True

    async def wake(self) -> None:
        if self._kernel.switches.wake_enumerates_again:
            for device in list(self._kernel.devices.values()):
                if device.present:
                    await device.enumerate_again()
        self._kernel.power.tell(POWERED_ON)

    async def ask_power(self, message: int) -> bool:
        """One question of power management; whether all have allowed it."""
        return await self._kernel.power.ask(message)

    def tell_power(self, message: int) -> None:
        """One message of power management that needs no answer."""
        self._kernel.power.tell(message)

    def power_listeners(self) -> int:
        return self._kernel.power.listeners

    # ---- the registry ------------------------------------------------------------------------------

    def add_entry(self, parent: int | None, class_name: str, name: str = "", **properties: Value) -> int:
        """Adds a bare entry; returns its registry id.  `_` in a property's name stands for a space."""
        above = self._kernel.registry.root if parent is None else self._kernel.registry.entries[parent]
        classes = (class_name, "IOUSBDevice") if class_name == "IOUSBHostDevice" else (class_name,)
        values = {key.replace("_", " "): value for key, value in properties.items()}
        return self._kernel.registry.add(above, classes, name, values).registry_id

    async def remove_entry(self, registry_id: int) -> None:
        self._kernel.registry.terminate(self._kernel.registry.entries[registry_id])

    def at_iteration(self, number: int, name: str, *positional: object) -> None:
        """Calls another method of this class before the step `number` of any iterator, counted from now."""
        self._kernel.at_iteration(number, lambda: self.call(name, positional, {}))

    def iterations(self) -> int:
        """The number of iterator steps."""
        return self._kernel.iteration_count

    def restless(self, is_restless: bool = True) -> None:
        """Makes all iterators invalid."""
        self._kernel.restless = is_restless

    # ---- devices -----------------------------------------------------------------------------------

    async def plug(
        self,
        kind: str,
        *,
        location: int = 0x14200000,
        port: int = 2,
        drivers: dict[int, str] | None = None,
        hub: int | None = None,
        **options: object,
    ) -> int:
        """Plugs in a device of this kind (shelf.py); returns its number.

        `drivers`: names in drivers.py by bInterfaceNumber.  `hub`: the number of the hub that it is
        connected to.
        """
        number = len(self._kernel.devices) + 1
        above = self._kernel.devices[hub] if hub is not None else None
        device = UsbDevice(
            self._kernel,
            number,
            await make_hardware(kind, options),
            location,
            port,
            drivers or {},
            above,
        )
        self._kernel.devices[number] = device
        await device.arrive()
        return number

    async def unplug(self, number: int, *, for_ever: bool = False) -> None:
        """Unplugs it; `replug` plugs the same one in again."""
        device = self._kernel.devices[number]
        await device.leave(self._kernel.switches.unplug_code)
        if for_ever:
            device.hardware.unplug()
            del self._kernel.devices[number]

    async def replug(self, number: int) -> None:
        device = self._kernel.devices[number]
        await self.unplug(number)
        await device.arrive()

    async def until_journal(self, line: str, seconds: float = TIMEOUT) -> None:
        """Waits until the journal has this line, and keeps it."""
        await self._kernel.until(lambda: line in self._kernel.journal, seconds, lambda: self._kernel.journal)

    async def until_waiting(self, number: int, address: int, count: int, seconds: float = TIMEOUT) -> None:
        """Waits until so many transfers are pending at an endpoint; address 0: control requests."""
        device = self._kernel.devices[number]
        await self._kernel.until(
            lambda: len(device.waiting.get(address, ())) == count, seconds, lambda: self.state(number)
        )

    async def until_state(self, number: int, name: str, value: object, seconds: float = TIMEOUT) -> None:
        """Waits until a field of `state` has this value."""
        await self._kernel.until(
            lambda: self.state(number)[name] == value, seconds, lambda: self.state(number)
        )

    def configurations(self, number: int) -> list[bytes]:
        """Its complete configuration descriptors."""
        return self._kernel.devices[number].hardware.configurations

    def state(self, number: int) -> dict[str, object]:
        """The kernel's state of a device."""
        device = self._kernel.devices[number]
        return {
            "present": device.present,
            "location": device.location,
            "address": device.address,
            "session": device.session,
            "registry_id": device.entry.registry_id if device.entry else 0,
            "configuration": device.configuration,
            "alternates": dict(device.alternates),
            "captured": device.captured,
            "captor": device.captor.connection.pid if device.captor else 0,
            "opener": device.opener.connection.pid if device.opener else 0,
            "interface_openers": {
                interface: client.connection.pid for interface, client in device.interface_openers.items()
            },
            "drivers": device.driver_interfaces,
            "waiting": {address: len(each) for address, each in device.waiting.items() if each},
            "counters": dict(device.counters),
        }

    # ---- a device that is controlled packet by packet ----------------------------------------------

    def _packets(self, number: int) -> PacketDevice:
        hardware = self._kernel.devices[number].hardware
        assert isinstance(hardware, PacketDevice), "this device cannot be controlled by packets"
        return hardware

    def give(self, number: int, address: int, data: bytes) -> None:
        self._packets(number).give(address, data)

    def give_packets(self, number: int, address: int, packets: list[bytes]) -> None:
        """Queues these packets, which may be short: for isochronous endpoints, one for each frame."""
        self._packets(number).give_packets(address, packets)

    def forget(self, number: int) -> None:
        self._packets(number).forget()

    def left(self, number: int, address: int) -> bytes:
        """Data that the host has not read yet."""
        return b"".join(self._packets(number).endpoints[address].to_send)

    def taken(self, number: int, address: int) -> bytes:
        """What the device received at an OUT endpoint since the last call."""
        endpoint = self._packets(number).endpoints[address]
        data = bytes(endpoint.taken)
        endpoint.taken.clear()
        return data

    def taken_packets(self, number: int, address: int) -> int:
        return self._packets(number).endpoints[address].taken_packets

    def credit(self, number: int, address: int, packets: int | None) -> None:
        """Accepts so many more packets; None: all."""
        self._packets(number).set_credit(address, packets)

    def stall(self, number: int, address: int) -> None:
        self._packets(number).stall(address)

    def requests(self, number: int) -> list[tuple[bytes, bytes]]:
        """Setup and data of each control request since the last call."""
        hardware = self._packets(number)
        found, hardware.requests = hardware.requests, []
        return found

    def answer(self, number: int, request: int, data: bytes | None) -> None:
        """Sets the answer to a vendor or class IN request; None: STALL."""
        self._packets(number).answers[request] = data

    def hold_control(self, number: int, holds: bool = True) -> None:
        """Whether it answers control requests with NAK."""
        hardware = self._packets(number)
        hardware.holds_control = holds
        if not holds:
            hardware.release_control()

    def hold_isochronous(self, number: int, holds: bool = True) -> None:
        """While it holds them, its isochronous transfers wait although their frames have passed."""
        hardware = self._packets(number)
        hardware.holds_isochronous = holds
        if not holds:
            hardware.release_isochronous()

    def refuse_configuration(self, number: int, code: int) -> None:
        """Makes the kernel's next SET_CONFIGURATION or SET_INTERFACE fail."""
        self._packets(number).refuses_configuration = code
