"""Holders and uses of a device, and reattaching its drivers, on a host made of files."""

import os
import threading
from pathlib import Path

import pytest

from tests.unit.usb.fake_sysfs import FakeSysfs
from usbipd.errors import ClaimError
from usbipd.usb.host import host_ownership
from usbipd.usb.ownership import Holder, SysfsOwnership


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def ownership(sysfs: FakeSysfs) -> SysfsOwnership:
    return sysfs.ownership()


def add_disk(sysfs: FakeSysfs, busid: str = "1-2", name: str = "sda", number: str = "8:0") -> Path:
    sysfs.add_interface(busid, 0, "usb-storage")
    return sysfs.add_block_device(sysfs.root / f"devices/{busid}/{busid}:1.0/host0/block", name, number)


@pytest.fixture
def partition(sysfs: FakeSysfs) -> Path:
    """/dev/sda1 on the disk of 1-2."""
    return sysfs.add_block_device(add_disk(sysfs), "sda1", "8:1")


def refused(ownership: SysfsOwnership, busid: str = "1-2") -> ClaimError:
    with pytest.raises(ClaimError) as caught:
        ownership.unmount(busid)
    return caught.value


# Holders


def test_drivers_are_named_once(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    for number, driver in enumerate(["snd-usb-audio", "snd-usb-audio", None, "usbhid"]):
        sysfs.add_interface("1-2.4", number, driver)
    sysfs.add_interface("1-2.40", 0, "cdc_acm")
    assert ownership.drivers_of("1-2.4") == ["snd-usb-audio", "usbhid"]


def test_holders_are_the_drivers_by_interface(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    for number in (10, 2, 0):
        sysfs.add_interface("1-2", number, "cdc_acm")
    sysfs.add_interface("1-2", 1, None)
    assert ownership.holders_of("1-2") == [Holder("driver", "cdc_acm", None, number) for number in (0, 2, 10)]


def test_a_driver_of_the_whole_device(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    sysfs.add_device("1-2", driver="usbip-host")
    assert ownership.drivers_of("1-2") == ["usbip-host"]
    assert ownership.holders_of("1-2") == [Holder("driver", "usbip-host", None, None)]


def test_programs_come_first(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    sysfs.add_interface("1-2", 0, "usbfs")
    sysfs.add_interface("1-2", 1, "usbhid")
    sysfs.add_program(4711, "virtualbox", "/etc/passwd", "/dev/bus/usb/001/012")
    sysfs.add_program(33, "qemu", "/dev/bus/usb/001/012")
    sysfs.add_program(34, "other", "/dev/bus/usb/001/013", "/dev/bus/usb/001/012 (deleted)")
    assert ownership.holders_of("1-2") == [
        Holder("program", "qemu", 33, None),
        Holder("program", "virtualbox", 4711, None),
        Holder("driver", "usbhid", None, 1),
    ]


def test_a_program_without_a_claim_does_not_block(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    sysfs.add_interface("1-2", 0, "usbhid")
    sysfs.add_program(9, "upowerd", "/dev/bus/usb/001/012")
    assert ownership.holders_of("1-2") == [
        Holder("driver", "usbhid", None, 0),
        Holder("program", "upowerd", 9, None),
    ]


def test_a_program_that_is_not_visible(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    sysfs.add_interface("1-2", 1, "usbfs")
    assert ownership.holders_of("1-2") == [Holder("program", "", None, 1)]


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (Holder("driver", "usb-storage", None, 0), "the driver usb-storage"),
        (Holder("program", "virtualbox", 4711, None), "the program virtualbox (pid 4711)"),
        (Holder("program", "", None, 1), "another program"),
    ],
)
def test_holders_in_words(holder: Holder, text: str) -> None:
    assert str(holder) == text


def test_a_missing_device_has_no_holders(ownership: SysfsOwnership) -> None:
    assert ownership.drivers_of("9-9") == []
    assert ownership.holders_of("9-9") == []
    assert ownership.in_use("9-9") == []
    ownership.unmount("9-9")
    ownership.give_back("9-9")


def test_a_host_without_sysfs_has_no_answers(tmp_path: Path) -> None:
    none = tmp_path / "none"
    ownership = SysfsOwnership(none, none, none, none)
    assert ownership.drivers_of("1-2") == []
    assert ownership.holders_of("1-2") == []
    assert ownership.in_use("1-2") == []
    ownership.unmount("1-2")
    ownership.give_back("1-2")


def test_this_host_has_one() -> None:
    assert host_ownership().drivers_of("no such device") == []


def test_drivers_are_probed_for_interfaces_without_one(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    sysfs.add_interface("1-2", 0, "usbhid")
    sysfs.add_interface("1-2", 1, None)
    ownership.give_back("1-2")
    assert sysfs.probed == "1-2:1.1"


def test_a_failed_probe_is_only_logged(
    sysfs: FakeSysfs, ownership: SysfsOwnership, caplog: pytest.LogCaptureFixture
) -> None:
    sysfs.add_interface("1-2", 0, None)
    (sysfs.root / "bus/usb/drivers_probe").unlink()
    (sysfs.root / "bus/usb/drivers_probe").mkdir()
    ownership.give_back("1-2")
    assert "1-2: no driver for 1-2:1.0" in caplog.text


# Use


def test_partitions_and_disks_of_this_device_only(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    add_disk(sysfs, "1-3", "sdb", "8:16")
    sysfs.mount("8:16", "/other", "/dev/sdb")
    sysfs.mount("0:5", "/proc", "proc")
    assert ownership.in_use("1-2") == []
    sysfs.mount("8:1", "/media/my\\040stick\\134ä", "/dev/sda1")
    sysfs.mount("8:0", "/whole", "/dev/sda")
    sysfs.mount("8:0", "/whole", "/dev/sda")
    assert ownership.in_use("1-2") == ["/media/my stick\\ä", "/whole"]


def test_a_mount_point_cannot_control_a_terminal(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount_table.write_bytes(b"36 25 8:1 / /a\\012b\x1b[2J\xff\xe2\x80\xa8\x0b rw - ext4 /dev/sda1 rw\n")
    assert ownership.in_use("1-2") == ["/a\\nb\\x1b[2J\\xff\\u2028\\x0b"]


def test_a_file_system_with_an_anonymous_number_is_found_by_its_source(
    sysfs: FakeSysfs, ownership: SysfsOwnership
) -> None:
    node = os.stat("/dev/null").st_rdev  # noqa: PTH116 - any device node of this host
    add_disk(sysfs, number=f"{os.major(node)}:{os.minor(node)}")
    sysfs.mount("0:44", "/data", "/dev/null")
    assert ownership.in_use("1-2") == ["/data"]


def test_a_source_that_is_not_a_device_is_not_touched(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, tmp_path: Path
) -> None:
    node = tmp_path / "server"
    node.symlink_to("/dev/null")
    sysfs.mount("0:44", "/data", str(node))
    assert ownership.in_use("1-2") == []


def test_the_other_devices_of_a_btrfs(sysfs: FakeSysfs, ownership: SysfsOwnership) -> None:
    members = sysfs.root / "fs/btrfs/12ab/devices"
    members.mkdir(parents=True)
    (members / "sda").symlink_to(add_disk(sysfs))
    (members / "sdb").symlink_to(add_disk(sysfs, "1-3", "sdb", "8:16"))
    sysfs.mount("8:16", "/pool", "/dev/sdb")
    assert ownership.in_use("1-2") == ["/pool"]


def test_swap_areas(sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.swap("/dev/sda")
    sysfs.swap("/media/stick/swap\\040file")
    sysfs.swap("/dev/sda10")
    sysfs.swap("/media/stick2/swap")
    assert ownership.in_use("1-2") == [
        "/media/stick",
        "swap on /dev/sda",
        "swap on /media/stick/swap file",
    ]


def test_volumes_built_on_a_partition(sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path) -> None:
    crypt = sysfs.add_built_device("dm-0", "254:0", partition, name="secret", uuid="CRYPT-LUKS2-12ab-secret")
    sysfs.add_built_device("dm-1", "254:1", crypt, name="vg-data", uuid="LVM-abcdef")
    sysfs.mount("254:1", "/data", "/dev/mapper/vg-data")
    assert ownership.in_use("1-2") == [
        "/data",
        "encrypted volume /dev/mapper/secret",
        "logical volume /dev/mapper/vg-data",
    ]


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"name": "disk", "uuid": "mpath-1"}, "mapped device /dev/mapper/disk"),
        ({}, "block device /dev/bcache0"),
    ],
)
def test_other_volumes(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, attributes: dict[str, str], text: str
) -> None:
    sysfs.add_built_device("bcache0", "252:0", partition, **attributes)
    assert ownership.in_use("1-2") == [text]


def test_a_raid_array_is_named_once(sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path) -> None:
    second = sysfs.add_block_device(partition.parent, "sda2", "8:2")
    (sysfs.add_built_device("md127", "9:127", partition, second) / "md").mkdir()
    assert ownership.in_use("1-2") == ["RAID array /dev/md127"]


# Unmounting


def test_nested_and_later_mounts_go_first(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.add_block_device(partition.parent, "sda2", "8:2")
    stick = sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.mount("8:2", "/media/stick/b", "/dev/sda2", inside=stick)
    sysfs.mount("8:1", "/media/stick", "/dev/sda1", inside=stick)
    sysfs.mount("8:1", "/elsewhere", "/dev/sda1")
    sysfs.mount("0:5", "/proc", "proc")
    ownership.unmount("1-2")
    assert sysfs.unmounted == ["/elsewhere", "/media/stick", "/media/stick/b", "/media/stick"]
    assert "/proc" in sysfs.mount_table.read_text()


def test_an_unused_device_stays_unchanged(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    ownership.unmount("1-2")
    assert sysfs.unmounted == []


@pytest.mark.parametrize("ours", ["mnt:[4026531841]", "mnt:[4026532000]"])
def test_nothing_is_unmounted_in_a_private_mount_namespace(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, ours: str
) -> None:
    """A device without mounts can still be claimed."""
    for process, namespace in (("1", "mnt:[4026531841]"), ("self", ours)):
        (sysfs.proc / process / "ns").mkdir(parents=True)
        (sysfs.proc / process / "ns/mnt").symlink_to(namespace)
    ownership.unmount("1-2")
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    if ours == "mnt:[4026531841]":
        ownership.unmount("1-2")
        assert sysfs.unmounted == ["/media/stick"]
        return
    error = refused(ownership)
    assert (error.code, sysfs.unmounted) == ("mounted", [])
    assert error.message == (
        "1-2 is in use: /media/stick, and this daemon has a private mount namespace: "
        "what it unmounts stays mounted on the host"
    )


def test_programs_with_open_files_are_named(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.busy.add("/media/stick")
    sysfs.add_program(10, "bash", cwd="/media/stick")
    sysfs.add_program(11, "v\x1bi", "/media/stick/letter.txt (deleted)")
    sysfs.add_program(12, "cat", "/media/stick2/letter.txt")
    error = refused(ownership)
    assert error.code == "mounted"
    assert error.message == (
        "1-2 is in use: /media/stick cannot be unmounted, because bash (pid 10) and v\\x1bi (pid 11) have "
        "files open there: umount: /media/stick: target is busy."
    )
    assert error.advice == "close them, then try again"


def test_only_the_first_programs_are_named(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.busy.add("/media/stick")
    for pid in range(1, 9):
        sysfs.add_program(pid, "sh", cwd="/media/stick")
    assert refused(ownership).message.partition("files open")[0].endswith("sh (pid 5) and 3 more have ")


def test_the_disk_of_this_system_is_not_touched(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:1", "/", "/dev/sda1", inside=100)
    sysfs.mount("8:0", "/home", "/dev/sda")
    error = refused(ownership)
    assert (error.code, error.message) == ("in-use", "1-2 is in use: this system runs from it")
    assert sysfs.unmounted == []


def test_the_message_of_umount_if_no_program_is_visible(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:1", "/media/a;b", "/dev/sda1")
    sysfs.busy.add("/media/a;b")
    error = refused(ownership)
    assert error.code == "mounted"
    assert "umount: /media/a;b: target is busy." in error.message
    assert error.advice is not None
    assert "fuser -vm '/media/a;b'" in error.advice


def test_a_file_system_that_another_process_unmounts(sysfs: FakeSysfs, partition: Path) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")

    def too_late(_point: bytes) -> str:
        sysfs.mount_table.write_text("")
        return "umount: /media/stick: not mounted."

    SysfsOwnership(sysfs.root, sysfs.mount_table, sysfs.proc, sysfs.dev, too_late).unmount("1-2")


def test_a_file_system_that_is_mounted_again(sysfs: FakeSysfs, partition: Path) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")

    def umount(_point: bytes) -> None:
        sysfs.mount_table.write_text("")
        sysfs.mount("8:1", "/media/again", "/dev/sda1")

    error = refused(SysfsOwnership(sysfs.root, sysfs.mount_table, sysfs.proc, sysfs.dev, umount))
    assert (error.code, error.message) == ("mounted", "1-2 is in use again: /media/again")


def test_nothing_of_another_device_is_unmounted(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    ours = sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.mount("0:50", "/media/stick/nfs", "server:/", inside=ours)
    error = refused(ownership)
    assert error.code == "mounted"
    assert error.message.endswith("another file system is mounted on /media/stick/nfs")
    assert error.advice == "unmount that first: umount /media/stick/nfs"
    assert sysfs.unmounted == []


def test_a_mount_over_ours_is_not_unmounted_instead(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:1", "/media/stick", "/dev/sda1")
    sysfs.mount("0:50", "/media/stick", "server:/")
    assert refused(ownership).code == "mounted"
    assert sysfs.unmounted == []


def test_swap_is_refused_before_anything_is_unmounted(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    sysfs.mount("8:0", "/media/stick", "/dev/sda")
    sysfs.swap("/dev/sda1")
    error = refused(ownership)
    assert (error.code, error.message) == ("in-use", "1-2 is in use: swap on /dev/sda1")
    assert error.advice == "unmounting does not end that; first: swapoff /dev/sda1"
    assert sysfs.unmounted == []


def test_volumes_are_refused_with_all_steps_in_order(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    second = sysfs.add_block_device(partition.parent, "sda2", "8:2")
    array = sysfs.add_built_device("md127", "9:127", partition, second)
    (array / "md").mkdir()
    crypt = sysfs.add_built_device("dm-0", "254:0", array, name="secret", uuid="CRYPT-LUKS2-12ab-secret")
    sysfs.add_built_device("dm-1", "254:1", crypt, name="vg-data", uuid="LVM-abcdef")
    sysfs.add_built_device("dm-2", "254:2", crypt, name="other", uuid="")
    sysfs.mount("254:1", "/my\\040data", "/dev/mapper/vg-data")
    sysfs.mount("8:0", "/media/stick", "/dev/sda")
    error = refused(ownership)
    assert error.code == "in-use"
    assert error.advice == (
        "unmounting does not end that; first: umount '/my data'; dmsetup remove other; "
        "lvchange --activate n /dev/mapper/vg-data; cryptsetup close secret; mdadm --stop /dev/md127"
    )
    assert sysfs.unmounted == []


def test_an_array_is_stopped_before_its_volumes(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path
) -> None:
    second = sysfs.add_block_device(partition.parent, "sda2", "8:2")
    crypt = sysfs.add_built_device("dm-0", "254:0", second, name="secret", uuid="CRYPT-LUKS2-12ab-secret")
    array = sysfs.add_built_device("md127", "9:127", partition, crypt)
    (array / "md").mkdir()
    assert refused(ownership).advice == (
        "unmounting does not end that; first: mdadm --stop /dev/md127; cryptsetup close secret"
    )


def test_a_device_that_leaves_meanwhile(sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path) -> None:
    (partition / "dev").unlink()
    with pytest.raises(FileNotFoundError):
        ownership.in_use("1-2")
    assert refused(ownership).code == "in-use"


def test_the_caches_are_written(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    descriptors: list[int] = []

    def note(descriptor: int) -> None:
        written.append(Path(f"/dev/fd/{descriptor}").readlink())
        descriptors.append(descriptor)

    (sysfs.dev / "sda1").touch()  # sda: a reader without a card
    monkeypatch.setattr(os, "fsync", note)
    ownership.unmount("1-2")
    assert written == [sysfs.dev / "sda1"]
    assert_closed(descriptors)


def assert_closed(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_drive_that_is_not_ready_is_not_waited_for(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like some drives, a FIFO opens at once only with O_NONBLOCK."""
    drive = sysfs.dev / "sda1"
    os.mkfifo(drive)
    waited: list[bool] = []

    def rescue() -> None:
        os.close(os.open(drive, os.O_WRONLY | os.O_NONBLOCK))  # only while another process waits for it
        waited.append(True)

    end = threading.Timer(5, rescue)
    end.start()
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    ownership.unmount("1-2")
    end.cancel()
    assert waited == []


def test_data_that_cannot_be_written(
    sysfs: FakeSysfs, ownership: SysfsOwnership, partition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors: list[int] = []

    def fail(descriptor: int) -> None:
        descriptors.append(descriptor)
        raise OSError(5, "Input/output error")

    (sysfs.dev / "sda1").touch()
    monkeypatch.setattr(os, "fsync", fail)
    error = refused(ownership)
    assert error.code == "not-written"
    assert error.message == "1-2: cannot flush /dev/sda1, data may be lost: Input/output error"
    assert_closed(descriptors)
