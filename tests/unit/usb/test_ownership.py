"""Who holds a device, and how it gets back to its drivers, on a sysfs made of files."""

from pathlib import Path

import pytest

from tests.unit.extension.fakes import FakeSysfs
from usbipd.usb.ownership import Ownership


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def ownership(sysfs: FakeSysfs) -> Ownership:
    return Ownership(sysfs.root, sysfs.mount_table)


def add_disk(sysfs: FakeSysfs, busid: str, name: str, number: str) -> Path:
    sysfs.add_interface(busid, 0, "usb-storage")
    return sysfs.add_block_device(sysfs.root / f"devices/{busid}/{busid}:1.0/host0/block", name, number)


def test_drivers_are_named_once(sysfs: FakeSysfs, ownership: Ownership) -> None:
    for number, driver in enumerate(["snd-usb-audio", "snd-usb-audio", None, "usbhid"]):
        sysfs.add_interface("1-2.4", number, driver)
    sysfs.add_interface("1-2.40", 0, "cdc_acm")
    assert ownership.drivers_of("1-2.4") == ["snd-usb-audio", "usbhid"]


def test_a_device_that_is_not_there_has_nothing(ownership: Ownership) -> None:
    assert ownership.drivers_of("9-9") == []
    assert ownership.mount_points_of("9-9") == []
    ownership.give_back("9-9")


def test_a_host_without_sysfs_says_nothing(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path / "none", tmp_path / "none either")
    assert ownership.drivers_of("1-2") == []
    assert ownership.mount_points_of("1-2") == []
    ownership.give_back("1-2")


def test_a_driver_is_looked_for_where_there_is_none(sysfs: FakeSysfs, ownership: Ownership) -> None:
    sysfs.add_interface("1-2", 0, "usbhid")
    sysfs.add_interface("1-2", 1, None)
    ownership.give_back("1-2")
    assert sysfs.probed == "1-2:1.1"


def test_no_driver_to_be_found_is_only_logged(
    sysfs: FakeSysfs, ownership: Ownership, caplog: pytest.LogCaptureFixture
) -> None:
    sysfs.add_interface("1-2", 0, None)
    (sysfs.root / "bus/usb/drivers_probe").unlink()
    (sysfs.root / "bus/usb/drivers_probe").mkdir()
    ownership.give_back("1-2")
    assert "1-2: no driver for 1-2:1.0" in caplog.text


def test_partitions_and_disks_of_this_device_only(sysfs: FakeSysfs, ownership: Ownership) -> None:
    disk = add_disk(sysfs, "1-2", "sda", "8:0")
    sysfs.add_block_device(disk, "sda1", "8:1")
    add_disk(sysfs, "1-3", "sdb", "8:16")
    sysfs.mount("8:16", "/other", "/dev/sdb")
    sysfs.mount("0:5", "/proc", "proc")
    assert ownership.mount_points_of("1-2") == []
    sysfs.mount("8:1", "/media/my\\040stick\\134ä", "/dev/sda1")
    sysfs.mount("8:0", "/whole", "/dev/sda")
    assert ownership.mount_points_of("1-2") == ["/media/my stick\\ä", "/whole"]


def test_what_is_built_on_a_partition(sysfs: FakeSysfs, ownership: Ownership) -> None:
    disk = add_disk(sysfs, "1-2", "sda", "8:0")
    partition = sysfs.add_block_device(disk, "sda1", "8:1")
    mapped = sysfs.add_block_device(sysfs.root / "devices/virtual/block", "dm-0", "254:0")
    (partition / "holders/dm-0").symlink_to(mapped)
    sysfs.mount("254:0", "/secret", "/dev/mapper/secret")
    assert ownership.mount_points_of("1-2") == ["/secret"]
