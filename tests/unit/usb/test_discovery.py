"""Lists of devices from a host that answers late, with an error, or not at all."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable

import pytest

from tests.unit.extension.fakes import record, until
from usbipd.errors import UsbipdError
from usbipd.simulated.bus import SimulatedBus
from usbipd.simulated.catalog import parse_simulate
from usbipd.usb import discovery
from usbipd.usb.discovery import DeviceDiscovery, DeviceRecord, Listing


class FakeHost:
    """A host that lists `busids`, once it is asked and does not hang."""

    def __init__(self, *busids: str) -> None:
        self.busids = busids
        self.answers = threading.Event()
        self.answers.set()
        self.asked = self.asking = 0
        self.error: UsbipdError | None = None
        self.unanswered: str | None = None
        self.on_late: Callable[[], None] | None = None

    def notify(self, on_late: Callable[[], None]) -> None:
        self.on_late = on_late

    def list_all(self) -> Listing:
        self.asked += 1
        self.asking += 1
        assert self.asking == 1, "one list at a time"
        found = self.busids
        self.answers.wait()
        self.asking -= 1
        if self.error is not None:
            raise self.error
        return Listing(
            [record(busid) for busid in found], {"1-9": UsbipdError("a hub")}, unanswered=self.unanswered
        )


def found(devices: list[DeviceRecord]) -> list[str]:
    return [device.busid for device in devices]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LIST_TIME", 0.05)


async def test_devices_are_ordered_and_what_is_left_out_is_known() -> None:
    source = DeviceDiscovery(FakeHost("2-1", "1-3", "1-2"))
    assert found(await source.list_devices()) == ["1-2", "1-3", "2-1"]
    assert {busid: str(error) for busid, error in source.left_out.items()} == {"1-9": "a hub"}
    assert source.problem is None


async def test_an_error_is_for_who_asked() -> None:
    host = FakeHost("1-2")
    source = DeviceDiscovery(host)
    host.error = UsbipdError("no sysfs")
    with pytest.raises(UsbipdError, match="no sysfs"):
        await source.list_devices()
    host.error = None
    assert found(await source.list_devices()) == ["1-2"]


async def test_those_who_ask_while_a_list_is_made_share_the_next_one() -> None:
    host = FakeHost()
    source = DeviceDiscovery(host)
    host.answers.clear()
    first = asyncio.create_task(source.list_devices())
    await until(lambda: host.asked == 1)
    host.busids = ("1-2",)  # plugged in since
    others = [asyncio.create_task(source.list_devices()) for _ in range(100)]
    await asyncio.sleep(0)
    others.pop().cancel()
    host.answers.set()
    assert found(await first) == []
    assert [found(devices) for devices in await asyncio.gather(*others)] == [["1-2"]] * 99
    assert host.asked == 2


async def test_a_host_that_hangs_at_the_first_list(impatient: None) -> None:
    host, late = FakeHost("1-2"), asyncio.Event()
    source = DeviceDiscovery(host)
    source.notify(late.set)
    host.answers.clear()
    for _ in range(5):
        assert found(await source.list_devices()) == []
    assert source.problem is not None
    assert "has not listed its USB devices" in source.problem
    assert host.asked == 1, "there is one thread, however often devices are listed"
    host.answers.set()
    await late.wait()
    assert found(await source.list_devices()) == ["1-2"]
    assert source.problem is None


async def test_a_host_that_hangs_later_has_its_last_devices(impatient: None) -> None:
    host = FakeHost("1-2")
    source = DeviceDiscovery(host)
    assert found(await source.list_devices()) == ["1-2"]
    host.answers.clear()
    host.busids = ()
    waiting = [asyncio.create_task(source.list_devices()) for _ in range(3)]
    assert [found(devices) for devices in await asyncio.gather(*waiting)] == [["1-2"]] * 3
    assert found(await source.list_devices()) == ["1-2"]
    assert source.problem is not None
    host.answers.set()
    await until(lambda: source.problem is None)
    assert found(await source.list_devices()) == []


def test_a_host_that_hangs_does_not_keep_the_process(impatient: None) -> None:
    """Neither the loop nor the process waits for the thread."""
    host = FakeHost()
    host.answers.clear()
    assert asyncio.run(DeviceDiscovery(host).list_devices()) == []
    [thread] = [each for each in threading.enumerate() if each.name == "usbipd-call"]
    assert thread.daemon
    host.answers.set()
    thread.join()


async def test_one_device_that_does_not_answer_is_a_problem_until_it_does() -> None:
    host, late = FakeHost("1-2"), asyncio.Event()
    source = DeviceDiscovery(host)
    source.notify(late.set)
    host.unanswered = "no answer about 1-3"
    assert found(await source.list_devices()) == ["1-2"]
    assert source.problem == "no answer about 1-3"
    assert host.on_late is not None
    await asyncio.to_thread(host.on_late)
    await late.wait()


class ResettingHost(FakeHost):
    """1-1 has address 0 in the first lists."""

    def __init__(self, lists: int) -> None:
        super().__init__("1-2")
        self._lists = lists

    def list_all(self) -> Listing:
        devices = super().list_all().devices
        device = record("1-1")
        if self.asked <= self._lists:
            device = dataclasses.replace(device, devnum=0)
        return Listing([*devices, device])


def test_a_device_that_is_being_reset_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "RESET_LOOK", 0.0)
    assert found(asyncio.run(DeviceDiscovery(ResettingHost(2)).list_devices())) == ["1-1", "1-2"]


def test_a_device_that_never_gets_an_address_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "RESET_TIME", 0.0)
    assert found(asyncio.run(DeviceDiscovery(ResettingHost(100)).list_devices())) == ["1-2"]


@pytest.mark.rule("bug-devid-collision")
def test_simulated_devices_have_a_bus_of_their_own() -> None:
    specs = parse_simulate("mass-storage,keyboard,keyboard")
    devices = asyncio.run(SimulatedBus(specs).list_devices())
    assert [(device.busid, device.busnum, device.devnum) for device in devices] == [
        ("240-1", 240, 2),
        ("240-2", 240, 3),
        ("240-3", 240, 4),
    ]
    assert [device.simulated for device in devices] == specs
    assert all(device.vendor_id and device.product for device in devices)
