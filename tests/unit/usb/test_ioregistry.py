"""Who holds a device of a Mac, and where it is mounted, on an IORegistry that the test makes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fake_iokit.registry import FakeRegistry, load, needs_fake
from usbipd.errors import ClaimError
from usbipd.usb.ownership import Holder

if TYPE_CHECKING:
    from usbipd.usb.ioregistry import IORegistryOwnership

pytestmark = needs_fake

BUSID, LOCATION = "20-2.3", 0x14230000
COMPOSITE = "AppleUSBHostCompositeDevice"
CLIENT = "AppleUSBHostFrameworkInterfaceClient"


class FakeMac:
    """A mount table, a diskutil that unmounts what is in it, and the registry."""

    def __init__(self, directory: Path) -> None:
        self.registry = FakeRegistry(load())
        self._table = directory / "mounted"
        self._table.touch()
        self._calls = directory / "calls"
        self.diskutil = directory / "diskutil"
        self.let_diskutil(r'sed -i "/\b$2\b\|\b$2s/d" "$TABLE"; echo "Unmount was successful"')

    def let_diskutil(self, do: str) -> None:
        """What diskutil does with its two arguments; $TABLE has a file system a line: source, tab, point."""
        self.diskutil.write_text(f'#!/bin/sh\nTABLE={self._table}\necho "$*" >> {self._calls}\n{do}\n')
        self.diskutil.chmod(0o755)

    def mount(self, source: str, point: str) -> None:
        with self._table.open("a", errors="surrogateescape") as table:
            table.write(f"{source}\t{point}\n")

    def mounts(self) -> list[tuple[str, str]]:
        lines = self._table.read_text(errors="surrogateescape").splitlines()
        return [(source, point) for source, _, point in (line.partition("\t") for line in lines)]

    @property
    def asked(self) -> list[str]:
        """The arguments with which diskutil was called."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[FakeMac]:
    mac = FakeMac(tmp_path)
    yield mac
    mac.registry.assert_balanced()


@pytest.fixture
def registry(mac: FakeMac) -> FakeRegistry:
    return mac.registry


@pytest.fixture
def ownership(mac: FakeMac) -> "IORegistryOwnership":
    from usbipd.usb.ioregistry import IORegistryOwnership

    return IORegistryOwnership(mac.mounts, mac.diskutil)


# ---- where a device is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("busid", "location"),
    [
        ("20-2", 0x14200000),
        ("20-2.3", 0x14230000),
        ("0-1", 0x00100000),
        ("2-4.5.1", 0x02451000),
        ("128-5", 0x80500000),
        ("20-11.1", 0x14B10000),
        ("255-15.15.15.15.15.15", 0xFFFFFFFF),
        ("20-1.1.1.1.1.1.1", None),  # deeper than the number has room for
        ("20-16", None),
        ("20-1.0", None),
        ("256-1", None),
    ],
)
def test_the_location_of_a_busid(mac: FakeMac, busid: str, location: int | None) -> None:
    from usbipd.usb.ioregistry import IORegistryOwnership, location_of

    assert location_of(busid) == location
    device = mac.registry.add_device(location or 0)
    mac.registry.add(mac.registry.add_interface(device, 0), "Driver")
    assert IORegistryOwnership(mac.mounts).drivers_of(busid) == ([] if location is None else ["Driver"])
    assert IORegistryOwnership(mac.mounts).drivers_of("9-9") == []


# ---- holders -------------------------------------------------------------------------------------


def test_a_driver_and_a_program_on_several_interfaces(
    registry: FakeRegistry, ownership: "IORegistryOwnership"
) -> None:
    device = registry.add_device(LOCATION, "Headset")
    registry.add(device, COMPOSITE)
    registry.add(device, "AppleUSBHostLegacyClient")
    hid = registry.add_interface(device, 0, UsbExclusiveOwner="AppleUserUSBHostHIDDevice")
    registry.add(registry.add(hid, "AppleUserUSBHostHIDDevice"), "IOHIDInterface")
    audio = registry.add_interface(device, 3, UsbExclusiveOwner="pid 412, usbaudiod")
    registry.add(audio, "AppleUSBAudioControlNub")
    registry.add(audio, CLIENT, "usbaudiod", IOUserClientCreator="pid 412, usbaudiod")
    registry.add_interface(device, 4, UsbExclusiveOwner="none")
    assert ownership.holders_of(BUSID) == [
        Holder("driver", "AppleUserUSBHostHIDDevice", None, 0),
        Holder("program", "usbaudiod", 412, 3),
        Holder("driver", "AppleUSBAudioControlNub", None, 3),
    ]
    assert ownership.drivers_of(BUSID) == ["AppleUserUSBHostHIDDevice", "AppleUSBAudioControlNub"]


def test_who_has_it_open_comes_before_who_is_connected(
    registry: FakeRegistry, ownership: "IORegistryOwnership"
) -> None:
    device = registry.add_device(LOCATION, "Phone", UsbExclusiveOwner="pid 80418, OpenMTP Helper (")
    registry.add(device, "AppleUSBHostDeviceUserClient", IOUserClientCreator="pid 233, Brave, the Browser")
    mtp = registry.add_interface(device, 0, UsbExclusiveOwner="pid 46502, ptpcamerad")
    registry.add(mtp, CLIENT, IOUserClientCreator="pid 46502, ptpcamerad")
    assert ownership.holders_of(BUSID) == [
        Holder("program", "OpenMTP Helper (", 80418, None),
        Holder("program", "ptpcamerad", 46502, 0),
        Holder("program", "Brave, the Browser", 233, None),
    ]
    assert ownership.drivers_of(BUSID) == []


def test_a_driver_of_the_whole_device(registry: FakeRegistry, ownership: "IORegistryOwnership") -> None:
    device = registry.add_device(LOCATION, "ST-Link", UsbExclusiveOwner="AppleUSBCDCCompositeDevice")
    driver = registry.add(device, "AppleUSBCDCCompositeDevice")
    registry.add(driver, "SomethingOfTheDriver", IOUserClientCreator="pid 1, launchd")
    assert ownership.holders_of(BUSID) == [Holder("driver", "AppleUSBCDCCompositeDevice", None, None)]
    assert ownership.drivers_of(BUSID) == ["AppleUSBCDCCompositeDevice"]


def test_clients_of_a_driver_hold_the_driver_only(
    registry: FakeRegistry, ownership: "IORegistryOwnership"
) -> None:
    device = registry.add_device(LOCATION)
    driver = registry.add(registry.add_interface(device, 0), "AppleUSBACMData", UsbExclusiveOwner="x")
    registry.add(driver, "IOHIDLibUserClient", IOUserClientCreator="pid 170, WindowServer")
    assert ownership.holders_of(BUSID) == [Holder("driver", "AppleUSBACMData", None, 0)]


def test_a_driver_outside_the_kernel_goes_by_its_own_name(
    registry: FakeRegistry, ownership: "IORegistryOwnership"
) -> None:
    device = registry.add_device(LOCATION)
    registry.add(registry.add_interface(device, 0), "IOUserService", "FTDI\x1b[31m\nSerial")
    assert ownership.drivers_of(BUSID) == [r"FTDI\x1b[31m\nSerial"]


def test_the_plumbing_holds_nothing(registry: FakeRegistry, ownership: "IORegistryOwnership") -> None:
    registry.add(registry.add_device(LOCATION, UsbExclusiveOwner=COMPOSITE), COMPOSITE)
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []


def test_this_process_is_not_in_its_own_way(registry: FakeRegistry, ownership: "IORegistryOwnership") -> None:
    device = registry.add_device(LOCATION)
    ours = f"pid {os.getpid()}, usbipd"
    registry.add(device, "AppleUSBHostDeviceUserClient", IOUserClientCreator=ours)
    registry.add_interface(device, 0, UsbExclusiveOwner=ours)
    assert ownership.holders_of(BUSID) == []


@pytest.mark.parametrize("text", ["pid 12", "pid x, y", "12, y", "pid -1, y"])
def test_an_owner_that_is_no_program(
    registry: FakeRegistry, ownership: "IORegistryOwnership", text: str
) -> None:
    registry.add_device(LOCATION, UsbExclusiveOwner=text)
    assert ownership.holders_of(BUSID) == [Holder("driver", text, None, None)]


def test_no_such_device(registry: FakeRegistry, ownership: "IORegistryOwnership") -> None:
    registry.add_device(0x14100000, UsbExclusiveOwner="pid 1, other")
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []
    assert ownership.in_use(BUSID) == []
    ownership.unmount(BUSID)
    ownership.give_back(BUSID)


def test_a_registry_that_cannot_be_read_names_nobody(
    registry: FakeRegistry, ownership: "IORegistryOwnership", caplog: pytest.LogCaptureFixture
) -> None:
    registry.add_device(LOCATION, UsbExclusiveOwner="pid 1, other")
    registry.keep_changing()
    assert ownership.holders_of(BUSID) == []
    assert ownership.drivers_of(BUSID) == []
    assert "20-2.3: the IORegistry cannot be read: it keeps changing" in caplog.text


# ---- mount points --------------------------------------------------------------------------------


def add_apfs_disk(registry: FakeRegistry) -> None:
    """disk14 with a partition for disk15, a container with two volumes."""
    medium = registry.add_disk(registry.add_device(LOCATION), "disk14")
    registry.add(medium, "IOMedia", "EFI", BSD_Name="disk14s1")
    partition = registry.add(medium, "IOMedia", "APFS", BSD_Name="disk14s2")
    container = registry.add(partition, "AppleAPFSMedia", BSD_Name="disk15")
    registry.add(container, "AppleAPFSVolume", "One", BSD_Name="disk15s1")
    registry.add(container, "AppleAPFSVolume", "Two", BSD_Name="disk15s2")


def test_mount_points_of_this_device_only(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.registry.add_disk(mac.registry.add_device(0x14100000), "disk145")
    mac.mount("/dev/disk1s1s1", "/")
    mac.mount("/dev/disk145s1", "/Volumes/other")
    mac.mount("map auto_home", "/disk14")
    mac.mount("//user@server/disk14s1", "/Volumes/share")
    assert ownership.in_use(BUSID) == []
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.mount("msdos://disk14s1/NO NAME", "/Volumes/NO NAME")
    mac.mount("/dev/disk15s2s1", "/Volumes/Two \udcff\x1b")
    mac.mount("/dev/disk14", "/whole")
    on_disk14, on_disk15 = ["/Volumes/NO NAME", "/whole"], ["/Volumes/One", r"/Volumes/Two \udcff\x1b"]
    assert ownership.in_use(BUSID) == on_disk14 + on_disk15


def test_a_network_interface_is_no_disk(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    interface = mac.registry.add_interface(mac.registry.add_device(LOCATION), 0)
    mac.registry.add(mac.registry.add(interface, "AppleUSBNCMData"), "IOEthernetInterface", BSD_Name="en5")
    mac.mount("map en5", "/net")
    assert ownership.in_use(BUSID) == []


def test_a_disk_may_be_in_use_if_nobody_can_tell(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.registry.keep_changing()
    for ask in (ownership.in_use, ownership.unmount):
        with pytest.raises(
            ClaimError, match=r"cannot tell whether 20-2\.3 is in use: the IORegistry"
        ) as caught:
            ask(BUSID)
        assert caught.value.code == "in-use"
    assert mac.asked == []


def test_the_mount_table_of_this_host(registry: FakeRegistry) -> None:
    registry.add_device(LOCATION)
    from usbipd.usb.ioregistry import IORegistryOwnership, mounted_file_systems

    assert {"/", "/proc"} <= {point for _, point in mounted_file_systems()}
    assert IORegistryOwnership().in_use(BUSID) == []


# ---- unmounting ----------------------------------------------------------------------------------


def test_a_container_is_unmounted_before_its_disk(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk145s1", "/Volumes/other")
    mac.mount("msdos://disk14s1/EFI", "/Volumes/EFI")
    mac.mount("/dev/disk15s1", "/Volumes/One")
    ownership.unmount(BUSID)
    assert mac.asked == ["unmountDisk disk15", "unmountDisk disk14"]
    assert mac.mounts() == [("/dev/disk145s1", "/Volumes/other")]


def test_what_is_not_mounted_is_left_alone(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    ownership.unmount(BUSID)
    ownership.unmount(BUSID)
    assert mac.asked == ["unmountDisk disk15"]


def test_diskutil_is_out_of_reach_of_ctrl_c(
    mac: FakeMac, ownership: "IORegistryOwnership", tmp_path: Path
) -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    ask = f"import os; open('{tmp_path}/session', 'w').write(str(os.getsid(0)))"
    mac.let_diskutil(f'>"$TABLE"; exec {sys.executable} -c "{ask}"')
    ownership.unmount(BUSID)
    assert int((tmp_path / "session").read_text()) != os.getsid(0)


def refusal(ownership: "IORegistryOwnership") -> str:
    with pytest.raises(ClaimError) as caught:
        ownership.unmount(BUSID)
    assert caught.value.code == "mounted"
    assert caught.value.advice is not None
    return caught.value.message


def test_a_refusal_has_diskutils_words(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.let_diskutil(
        'echo "Unmount of $2 failed: at least one volume could not be unmounted"\n'
        'echo "Unmount was dissented by PID 319 (/usr/bin/tail\033)" >&2; exit 1'
    )
    assert refusal(ownership) == (
        "20-2.3 cannot be unmounted: Unmount of disk15 failed: at least one volume could not be unmounted "
        r"Unmount was dissented by PID 319 (/usr/bin/tail\x1b)"
    )
    assert mac.asked == ["unmountDisk disk15"]


def test_a_refusal_without_words(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.let_diskutil("exit 3")
    assert refusal(ownership) == "20-2.3 cannot be unmounted: diskutil ended with exit code 3"


def test_a_success_that_is_none(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.let_diskutil("exit 0")
    assert refusal(ownership) == "20-2.3 cannot be unmounted: it is still mounted on /Volumes/One"


def test_a_diskutil_that_hangs(
    mac: FakeMac, ownership: "IORegistryOwnership", monkeypatch: pytest.MonkeyPatch
) -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.let_diskutil("exec sleep 60")
    monkeypatch.setattr("usbipd.usb.ioregistry.UNMOUNT_TIMEOUT", 0.1)
    assert refusal(ownership) == "20-2.3 cannot be unmounted: disk15 is still being unmounted after 0 s"


def test_no_diskutil(mac: FakeMac, ownership: "IORegistryOwnership") -> None:
    add_apfs_disk(mac.registry)
    mac.mount("/dev/disk15s1", "/Volumes/One")
    mac.diskutil.unlink()
    assert refusal(ownership) == f"20-2.3 cannot be unmounted: {mac.diskutil}: No such file or directory"
