"""Mounted disks of a Mac, and unmounting them.  test_registry.py runs it, in a separate process."""

import os
import sys
from pathlib import Path

import pytest

from tests.mac.tree import BUSID, Disks, Tree
from usbipd.errors import ClaimError
from usbipd.usb import ioregistry
from usbipd.usb.ioregistry import IORegistryOwnership, mounted_file_systems


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


@pytest.fixture
def ownership(tree: Tree, disks: Disks) -> IORegistryOwnership:
    return IORegistryOwnership(disks.mounts, disks.diskutil)


# ---- location of a device ------------------------------------------------------------------------


def test_a_port_number_missing_in_the_location(
    tree: Tree, disks: Disks, ownership: IORegistryOwnership
) -> None:
    """Port 17 of an Intel Mac, beside port 10, which has the same nibble."""
    port = tree.add(None, "AppleUSB30XHCIPort", port=bytes([17, 0, 0, 0]))
    tree.add_disk(tree.add(port, "IOUSBHostDevice", locationID=0x14A00000), "disk4")
    disks.mount("/dev/disk4s1", "/Volumes/STICK")
    assert ownership.in_use("20-17") == ["/Volumes/STICK"]
    with pytest.raises(ClaimError, match=r"cannot tell whether 20-10 is in use: the IORegistry does not"):
        ownership.in_use("20-10")


def test_two_devices_at_one_busid(tree: Tree, ownership: IORegistryOwnership) -> None:
    for location in (0x14100000, 0x14900000):
        tree.add(None, "IOUSBHostDevice", locationID=location, PortNum=1, UsbExclusiveOwner="Driver")
    with pytest.raises(ClaimError, match="in use: the IORegistry has 2 devices at 20-1") as caught:
        ownership.in_use("20-1")
    assert caught.value.code == "in-use"
    assert ownership.holders_of("20-1") == []


# ---- mount points --------------------------------------------------------------------------------


def add_apfs_disk(tree: Tree) -> None:
    """disk14 with a partition for disk15, a container with two volumes."""
    medium = tree.add_disk(tree.add_device(), "disk14")
    tree.add(medium, "IOMedia", "EFI", BSD_Name="disk14s1")
    partition = tree.add(medium, "IOMedia", "APFS", BSD_Name="disk14s2")
    container = tree.add(partition, "AppleAPFSMedia", BSD_Name="disk15")
    tree.add(container, "AppleAPFSVolume", "One", BSD_Name="disk15s1")
    tree.add(container, "AppleAPFSVolume", "Two", BSD_Name="disk15s2")


def test_mount_points_of_this_device_only(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    tree.add_disk(tree.add(None, "IOUSBHostDevice", locationID=0x14100000, PortNum=1), "disk145")
    disks.mount("/dev/disk1s1s1", "/")
    disks.mount("/dev/disk145s1", "/Volumes/other")
    disks.mount("map auto_home", "/disk14")
    disks.mount("//user@server/disk14s1", "/Volumes/share")
    assert ownership.in_use(BUSID) == []
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.mount("msdos://disk14s1/NO NAME", "/Volumes/NO NAME")
    disks.mount("/dev/disk15s2s1", "/Volumes/Two \udcff\x1b")
    disks.mount("/dev/disk14", "/whole")
    on_disk14, on_disk15 = ["/Volumes/NO NAME", "/whole"], ["/Volumes/One", r"/Volumes/Two \udcff\x1b"]
    assert ownership.in_use(BUSID) == on_disk14 + on_disk15


def test_a_network_interface_is_not_a_disk(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    interface = tree.add_interface(tree.add_device(), 0)
    tree.add(tree.add(interface, "AppleUSBNCMData"), "IOEthernetInterface", BSD_Name="en5")
    disks.mount("map en5", "/net")
    assert ownership.in_use(BUSID) == []


def test_a_disk_counts_as_in_use_if_unknown(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    tree.keep_changing()
    for ask in (ownership.in_use, ownership.unmount):
        with pytest.raises(
            ClaimError, match=r"cannot tell whether 20-2\.3 is in use: the IORegistry"
        ) as caught:
            ask(BUSID)
        assert caught.value.code == "in-use"
    assert disks.asked == []


def test_the_mount_table_of_this_host(tree: Tree) -> None:
    tree.add_device()
    assert {"/", "/proc"} <= {point for _, point in mounted_file_systems()}
    assert IORegistryOwnership().in_use(BUSID) == []


# ---- unmounting ----------------------------------------------------------------------------------


def test_a_container_is_unmounted_before_its_disk(
    tree: Tree, disks: Disks, ownership: IORegistryOwnership
) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk145s1", "/Volumes/other")
    disks.mount("msdos://disk14s1/EFI", "/Volumes/EFI")
    disks.mount("/dev/disk15s1", "/Volumes/One")
    ownership.unmount(BUSID)
    assert disks.asked == ["unmountDisk disk15", "unmountDisk disk14"]
    assert disks.mounts() == [("/dev/disk145s1", "/Volumes/other")]


def test_unmounted_disks_are_ignored(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    ownership.unmount(BUSID)
    ownership.unmount(BUSID)
    assert disks.asked == ["unmountDisk disk15"]


def test_ctrl_c_does_not_reach_diskutil(
    tree: Tree, disks: Disks, ownership: IORegistryOwnership, tmp_path: Path
) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    ask = f"import os; open('{tmp_path}/session', 'w').write(str(os.getsid(0)))"
    disks.let_diskutil(f'>"$TABLE"; exec {sys.executable} -c "{ask}"')
    ownership.unmount(BUSID)
    assert int((tmp_path / "session").read_text()) != os.getsid(0)


def unmount_error(ownership: IORegistryOwnership) -> str:
    with pytest.raises(ClaimError) as caught:
        ownership.unmount(BUSID)
    assert caught.value.code == "mounted"
    assert caught.value.advice is not None
    return caught.value.message


def test_a_refusal_quotes_diskutil(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.let_diskutil(
        'echo "Unmount of $2 failed: at least one volume could not be unmounted"\n'
        'echo "Unmount was dissented by PID 319 (/usr/bin/tail\033)" >&2; exit 1'
    )
    assert unmount_error(ownership) == (
        "20-2.3 cannot be unmounted: Unmount of disk15 failed: at least one volume could not be unmounted "
        r"Unmount was dissented by PID 319 (/usr/bin/tail\x1b)"
    )
    assert disks.asked == ["unmountDisk disk15"]


def test_a_refusal_without_output(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.let_diskutil("exit 3")
    assert unmount_error(ownership) == "20-2.3 cannot be unmounted: diskutil ended with exit code 3"


def test_a_false_success(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.let_diskutil("exit 0")
    assert unmount_error(ownership) == "20-2.3 cannot be unmounted: it is still mounted on /Volumes/One"


def test_a_diskutil_that_hangs(
    tree: Tree, disks: Disks, ownership: IORegistryOwnership, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.let_diskutil("exec sleep 60")
    monkeypatch.setattr(ioregistry, "UNMOUNT_TIMEOUT", 0.1)
    assert unmount_error(ownership) == "20-2.3 cannot be unmounted: disk15 is still being unmounted after 0 s"


def test_no_diskutil(tree: Tree, disks: Disks, ownership: IORegistryOwnership) -> None:
    add_apfs_disk(tree)
    disks.mount("/dev/disk15s1", "/Volumes/One")
    disks.diskutil.unlink()
    assert (
        unmount_error(ownership) == f"20-2.3 cannot be unmounted: {disks.diskutil}: No such file or directory"
    )
