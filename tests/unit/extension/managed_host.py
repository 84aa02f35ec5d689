"""A host with devices and the manager that shares them."""

from tests.unit.extension.fakes import (
    FakeSource,
    FakeSpawner,
    FakeStore,
    FakeSysfs,
    make_manager,
    record,
    until,
)
from usbipd.config import AccessRule
from usbipd.errors import ClaimError
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.usb_stack import LINUX, UsbStack
from usbipd.ipc.control_messages import (
    BindParameters,
    DeviceInfo,
    DeviceState,
    HardwareId,
    HistoryEvent,
    UnbindParameters,
)
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import Ownership

BUSY = ClaimError("1-2: another program holds it", code="LIBUSB_ERROR_BUSY")
THING = HardwareId(vendor_id=0x1234, product_id=0x5678)
"""The hardware id of every device in these tests."""


class Host:
    """A host with devices 1-2 and 1-3, held by drivers, and a simulated one."""

    stack: UsbStack = LINUX
    ownership: Ownership | None = None

    def __init__(self, spawner: FakeSpawner, sysfs: FakeSysfs) -> None:
        sysfs.add_interface("1-2", 0, "usb-storage")
        sysfs.add_interface("1-3", 0, "usbhid")
        sysfs.add_interface("1-3", 1, "usbhid")
        sysfs.add_interface("1-3", 2, "snd-usb-audio")
        self.spawner = spawner
        self.sysfs = sysfs
        self.source = FakeSource(record("1-2"), record("1-3"))
        self.simulated = FakeSource(record("240-1", simulated=True))
        self.store = FakeStore()
        self.manager = self.new_manager()

    def new_manager(self, access: tuple[AccessRule, ...] = ()) -> SystemExtensionManager:
        """The host after a restart: the same store, the same devices."""
        self.manager = make_manager(
            self.spawner,
            self.sysfs,
            self.simulated,
            self.source,
            store=self.store,
            access=access,
            stack=self.stack,
            ownership=self.ownership,
        )
        return self.manager

    async def bind(self, busid: str, *allow: str) -> DeviceInfo:
        [device] = (await self.manager.bind(BindParameters(busid=busid, allow=list(allow)), "test")).devices
        return device

    async def unbind(self, busid: str | None) -> list[str]:
        return (await self.manager.unbind(UnbindParameters(busid=busid), "test")).busids

    async def states(self) -> dict[str, DeviceState]:
        return {device.busid: device.state for device in await self.manager.list_devices()}

    async def device(self, busid: str) -> DeviceInfo:
        return next(device for device in await self.manager.list_devices() if device.busid == busid)

    async def until_state(self, busid: str, state: DeviceState) -> None:
        await until(
            lambda: (device := self.manager.shared_devices.get(busid)) is not None and device.shown is state
        )

    def recorded_events(self, busid: str) -> list[str]:
        """The history's events of the claims and sessions of a device, in order.

        Fails unless each claim and each session has exactly one end, with its duration.
        """
        events = []
        begun: list[HistoryEvent] = []
        for event, details in self.store.events:
            if details.get("busid") != busid or event in (HistoryEvent.BOUND, HistoryEvent.UNBOUND):
                continue
            events.append(event.value)
            if event in (HistoryEvent.CLAIMED, HistoryEvent.ATTACHED):
                assert len(begun) == (event is HistoryEvent.ATTACHED), events
                begun.append(event)
            elif begun:
                expected = HistoryEvent.ATTACHED if event is HistoryEvent.DETACHED else HistoryEvent.CLAIMED
                assert begun.pop() is expected, events
                assert details["seconds"] >= 0, events
            else:
                assert event is not HistoryEvent.RELEASED, events
                assert details.get("seconds") is None, events
        return events

    def plug(self, device: DeviceRecord) -> None:
        self.source.records[device.busid] = device
        self.manager.devices_changed()

    def unplug(self, busid: str) -> None:
        """libusb notifies the worker, which exits."""
        del self.source.records[busid]
        for child in self.spawner.children:
            if child.channel.is_open and child.busid == busid:
                child.device_gone()
                child.die()
        self.manager.devices_changed()
