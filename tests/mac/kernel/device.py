"""A device in the kernel of a Mac: enumerated, configured, open, captured.  Runs in the kernel."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Set
from typing import TYPE_CHECKING, Final

from tests.mac.kernel import errors
from tests.mac.kernel.drivers import DRIVERS
from tests.mac.kernel.errors import CallError
from tests.mac.kernel.hardware import Hardware, Transfer
from tests.mac.kernel.registry import Entry, Properties
from usbipd.protocol.constants import Speed
from usbipd.usb.descriptors import Configuration, Endpoint, Interface, parse_configuration, parse_device

if TYPE_CHECKING:
    from tests.mac.kernel.clients import InterfaceClient, UserClient
    from tests.mac.kernel.kernel import Kernel

CAPTURE: Final = 1 << 30  # kUSBReEnumerateCaptureDeviceMask
RELEASE: Final = 1 << 29  # kUSBReEnumerateReleaseDeviceMask
SPEEDS: Final = {Speed.LOW: 0, Speed.FULL: 1, Speed.HIGH: 2, Speed.SUPER: 3}
"""kUSBDeviceSpeedLow and so on: USB.h."""


def signed(location: int) -> int:
    """A locationID as in the registry: a signed 32-bit number."""
    return location - (1 << 32) if location & 1 << 31 else location


class UsbDevice:
    """One location on a bus with the device plugged in there."""

    def __init__(
        self,
        kernel: Kernel,
        number: int,
        hardware: Hardware,
        location: int,
        port: int,
        drivers: dict[int, str],
        hub: UsbDevice | None = None,
    ) -> None:
        self.kernel = kernel
        self.number = number
        self.hardware = hardware
        self.location = location
        self.port = port
        self.drivers = drivers
        """Names in `DRIVERS`, by bInterfaceNumber."""
        self.hub = hub
        self.entry: Entry | None = None
        """None: the device is not present."""
        self.address = 0
        self.session = 0
        self.configuration = 0
        self.alternates: dict[int, int] = {}
        self.interfaces: dict[int, Entry] = {}
        self.exclusive_drivers: set[int] = set()
        self.opener: UserClient | None = None
        self.interface_openers: dict[int, InterfaceClient] = {}
        self.captured = False
        self.captor: UserClient | None = None
        """None while captured: the captor has exited, and the capture outlived it."""
        self.first_use: set[int] = set()
        """Interfaces of a captured device that were opened before."""
        self.waiting: dict[int, list[Transfer]] = {}
        """Pending transfers by endpoint address, in order of submission; 0: control."""
        self.stalled: set[int] = set()
        """Stalled pipes that were not cleared."""
        self.halted: set[int] = set()
        """Endpoints that always answer with STALL: `Switches.halted_at_first_use`."""
        self.counters: Counter[str] = Counter()
        self._timers: list[asyncio.TimerHandle] = []
        self.parsed: list[Configuration] = [parse_configuration(raw) for raw in hardware.configurations]
        self.descriptor = parse_device(hardware.device_descriptor)

    # ---- hotplug -----------------------------------------------------------------------------------

    @property
    def present(self) -> bool:
        return self.entry is not None

    async def arrive(self, *, address: int | None = None, captured: bool = False) -> None:
        """Enumerates it, which sets its first configuration, and lets drivers match it."""
        self.hardware.reset()
        self.session = self.kernel.next_session()
        self.address = address or self.kernel.next_address(self.location >> 24)
        self.captured, self.captor = captured, None
        self.stalled.clear()
        self.halted.clear()
        self.first_use.clear()
        if not captured:
            first = self.parsed[0].bConfigurationValue
            if await self.hardware.set_configuration(first) == errors.SUCCESS:
                self.configuration = first
        manufacturer, product, serial = self.hardware.strings
        number: Properties = {"PortNum": self.port} if self.kernel.switches.has_port_number else {}
        strings: Properties = {
            "USB Vendor Name": manufacturer,
            "USB Product Name": product,
            "USB Serial Number": serial,
        }
        self.entry = self.kernel.registry.add(
            self._port_entry(),
            ("IOUSBHostDevice", "IOUSBDevice"),
            product or "IOUSBHostDevice",
            {
                "sessionID": self.session,
                "locationID": signed(self.location),
                "USB Address": self.address,
                "bNumConfigurations": len(self.parsed),
                "Device Speed": SPEEDS[self.hardware.speed],
                **{
                    key: self.descriptor[key]
                    for key in ("idVendor", "idProduct", "bcdDevice", "bDeviceClass")
                },
                **number,
                **{key: value for key, value in strings.items() if value},
            },
            usb_parent=self.hub.entry if self.hub else None,
            subject=self,
        )
        self.kernel.note(f"arrived {self.location:08x}")
        self._publish_interfaces()

    def _port_entry(self) -> Entry:
        """Its parent in the registry: a port of a hub or of a controller."""
        registry = self.kernel.registry
        bus = self.location >> 24
        above = self.hub.entry if self.hub else next(iter(registry.find("AppleUSBXHCI", {"bus": bus})), None)
        if above is None:
            above = registry.add(registry.root, ("AppleUSBXHCI",), properties={"bus": bus})
        name = f"port@{self.location:08x}"
        found = next((each for each in above.children if each.name == name), None)
        if found is not None:
            return found
        newer = int(self.kernel.switches.macos_version.split(".")[0]) >= 26
        key = "usb-port-number" if newer else "port"
        return registry.add(above, ("AppleUSBHostPort",), name, {key: bytes([self.port, 0, 0, 0])})

    async def leave(self, code: int) -> None:
        """It leaves the bus, with all devices connected to it; transfers end with `code`."""
        entry, self.entry = self.entry, None
        if entry is None:
            return
        for each in self.kernel.devices.values():
            if each.hub is self:
                await each.leave(code)
        self._cancel_timers()
        await self.cancel_all(code)
        self.opener = self.captor = None
        self.interface_openers.clear()
        self.interfaces.clear()
        self.exclusive_drivers.clear()
        self.configuration = 0
        self.alternates.clear()
        self.kernel.registry.terminate(entry)
        self.kernel.note(f"left {self.location:08x}")

    async def enumerate_again(self, *, captured: bool = False) -> None:
        self.counters["reenumerations"] += 1
        address = None if self.kernel.switches.reenumeration_changes_address else self.address
        await self.leave(self.kernel.switches.abort_code)
        if self.kernel.switches.reenumeration_seconds:
            await asyncio.sleep(self.kernel.switches.reenumeration_seconds)
            if self.entry is not None or self.number not in self.kernel.devices:
                return  # plugged in or removed meanwhile
        await self.arrive(address=address, captured=captured)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    # ---- interfaces and drivers --------------------------------------------------------------------

    def current(self) -> Configuration | None:
        return next((each for each in self.parsed if each.bConfigurationValue == self.configuration), None)

    def setting(self, interface: int) -> Interface | None:
        current = self.current()
        alternate = self.alternates.get(interface, 0)
        return next(
            (
                each
                for each in (current.interfaces if current else ())
                if (each.bInterfaceNumber, each.bAlternateSetting) == (interface, alternate)
            ),
            None,
        )

    def endpoints(self, interface: int, alternate: int | None = None) -> list[Endpoint]:
        """The endpoints of an alternate setting, by default the current one, in the order of its pipes."""
        current = self.current()
        wanted = self.alternates.get(interface, 0) if alternate is None else alternate
        return [
            each
            for each in (current.endpoints if current else ())
            if (each.bInterfaceNumber, each.bAlternateSetting) == (interface, wanted)
        ]

    def _publish_interfaces(self) -> None:
        current = self.current()
        for each in current.interfaces if current else ():
            if each.bAlternateSetting != 0:
                continue
            self.interfaces[each.bInterfaceNumber] = self.kernel.registry.add(
                self.entry,
                ("IOUSBHostInterface", "IOUSBInterface"),
                f"IOUSBHostInterface@{each.bInterfaceNumber}",
                {
                    "locationID": signed(self.location),
                    "bInterfaceNumber": each.bInterfaceNumber,
                    "bAlternateSetting": 0,
                    "bInterfaceClass": each.bInterfaceClass,
                    "bInterfaceSubClass": each.bInterfaceSubClass,
                    "bInterfaceProtocol": each.bInterfaceProtocol,
                    "bConfigurationValue": self.configuration,
                },
                subject=self,
            )
        if not self.captured:
            self._after(self.kernel.switches.driver_seconds, self._match_drivers)

    def _after(self, seconds: float, work: object) -> None:
        assert callable(work)
        if seconds:
            self._timers.append(asyncio.get_running_loop().call_later(seconds, work))
        else:
            work()

    def _match_drivers(self) -> None:
        for interface, name in self.drivers.items():
            entry = self.interfaces.get(interface)
            if entry is None or self.captured or interface in self.interface_openers:
                continue
            driver = DRIVERS[name]
            first = driver.attach(self.kernel.registry, entry)
            if driver.exclusive:
                self.exclusive_drivers.add(interface)
                entry.properties["UsbExclusiveOwner"] = first.classes[0]
        self.kernel.changed()

    @property
    def driver_interfaces(self) -> list[int]:
        """The interfaces that have a driver."""
        return [
            number
            for number, entry in self.interfaces.items()
            if any("IOUserClient" not in child.classes for child in entry.children)
        ]

    def _remove_drivers(self, stay: Set[int] = frozenset()) -> None:
        """Removes all except those of the interfaces `stay`, and the user clients of the interfaces."""
        self._cancel_timers()
        for number, entry in self.interfaces.items():
            if number in stay:
                continue
            for child in list(entry.children):
                self.kernel.registry.terminate(child)
            entry.properties.pop("UsbExclusiveOwner", None)
        self.exclusive_drivers &= stay

    def _remove_interfaces(self) -> None:
        self._remove_drivers()
        for entry in self.interfaces.values():
            self.kernel.registry.terminate(entry)
        self.interfaces.clear()
        self.interface_openers.clear()

    # ---- requests of its clients -------------------------------------------------------------------

    async def set_configuration(self, value: int) -> None:
        if value and all(each.bConfigurationValue != value for each in self.parsed):
            raise CallError(errors.CONFIGURATION_NOT_FOUND)
        await self.cancel_all(self.kernel.switches.abort_code)
        code = await self.hardware.set_configuration(value)
        self._remove_interfaces()
        self.alternates.clear()
        self.stalled.clear()
        if code != errors.SUCCESS:
            self.configuration = 0
            raise CallError(code)
        self.configuration = value
        self._publish_interfaces()

    async def set_interface(self, interface: int, alternate: int) -> None:
        current = self.current()
        if current is None or not any(
            (each.bInterfaceNumber, each.bAlternateSetting) == (interface, alternate)
            for each in current.interfaces
        ):
            raise CallError(errors.INTERFACE_NOT_FOUND)
        for each in self.endpoints(interface):
            await self.cancel(each.bEndpointAddress, self.kernel.switches.abort_code)
            self.stalled.discard(each.bEndpointAddress)
        if (code := await self.hardware.set_interface(interface, alternate)) != errors.SUCCESS:
            raise CallError(code)
        self.alternates[interface] = alternate
        self.interfaces[interface].properties["bAlternateSetting"] = alternate

    async def capture(self, captor: UserClient) -> None:
        """Terminates its drivers and closes it for all clients; it stays on the bus."""
        self.counters["captures"] += 1
        await self.cancel_all(self.kernel.switches.abort_code)
        self.opener = None
        self.interface_openers.clear()
        stays = self.kernel.switches.storage_driver_stays and self.exclusive_drivers & {
            interface for interface, name in self.drivers.items() if name == "storage"
        }
        self._remove_drivers(stays or set())
        self.captured, self.captor = True, captor
        if self.kernel.switches.capture_unconfigures and not stays:
            await self.hardware.set_configuration(0)
            self._remove_interfaces()
            self.configuration = 0
            self.alternates.clear()
        self.kernel.note(f"captured {self.location:08x}")

    async def client_closed(self, client: UserClient) -> None:
        """A user client was closed: closes what it had open, and ends its capture unless that survives."""
        if self.opener is client:
            self.opener = None
            if self.entry is not None:
                self.entry.properties.pop("UsbExclusiveOwner", None)
        if self.captor is client and self.present:
            self.captor = None
            self.kernel.note(f"orphaned {self.location:08x}")
            if not self.kernel.switches.capture_survives_owner:
                await self.enumerate_again()

    async def interface_closed(self, client: InterfaceClient) -> None:
        for each in self.endpoints(client.interface):
            await self.cancel(each.bEndpointAddress, self.kernel.switches.abort_code)
        if self.interface_openers.get(client.interface) is client:
            del self.interface_openers[client.interface]
            if client.service.properties.get("UsbExclusiveOwner"):
                del client.service.properties["UsbExclusiveOwner"]

    # ---- transfers ---------------------------------------------------------------------------------

    def submit(self, transfer: Transfer) -> None:
        pipe = transfer.address if transfer.address & 0x7F else 0
        self.waiting.setdefault(pipe, []).append(transfer)
        self.counters["transfers"] += 1
        self.kernel.changed()
        if pipe in self.halted or pipe in self.stalled:
            transfer.end(errors.PIPE_STALLED)
        else:
            self.hardware.submit(transfer)

    def ended(self, transfer: Transfer) -> None:
        pipe = transfer.address if transfer.address & 0x7F else 0
        if transfer in self.waiting.get(pipe, ()):
            self.waiting[pipe].remove(transfer)
        if transfer.status == errors.PIPE_STALLED and pipe:
            self.stalled.add(pipe)
            if self.kernel.switches.stall_ends_queue:
                self.kernel.spawn(self.cancel(pipe, errors.PIPE_STALLED))
        self.kernel.changed()

    async def cancel(self, pipe: int, code: int) -> None:
        transfers = list(self.waiting.get(pipe, ()))
        if self.kernel.switches.abort_reversed:
            transfers.reverse()
        for transfer in transfers:
            transfer.cancelled = True
        if transfers:
            await self.hardware.cancel(transfers, code)

    async def cancel_all(self, code: int) -> None:
        for pipe in list(self.waiting):
            await self.cancel(pipe, code)
