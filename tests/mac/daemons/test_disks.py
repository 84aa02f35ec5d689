"""Disks of a Mac: a mounted one is not claimed unless it can be unmounted."""

import pytest

from tests.mac.daemons.daemon import MacDaemon, until
from tests.mac.mac import Device
from tests.mac.machine import BUS, Machine

SOURCE = "/dev/disk4s1"
POINT = "/Volumes/STICK"
BUSID, PORT_ON_INTEL_BOARDS, LOCATION = f"{BUS}-17", 17, 0x14A00000
"""A port whose number differs from the nibble of the locationID."""


@pytest.fixture
def stick(mac: Machine) -> Device:
    """A mounted disk.  Its busid is derived from its port number."""
    mac.kernel.plug("loopback", location=0x14100000, port=1)
    stick = mac.kernel.plug("loopback", location=LOCATION, port=PORT_ON_INTEL_BOARDS, drivers={0: "storage"})
    mac.mount({"/dev/disk1s1": "/", SOURCE: POINT, "msdos://disk4s2/EFI": "/Volumes/EFI"})
    return stick


def test_a_mounted_disk_is_not_claimed(mac: Machine, daemon: MacDaemon, stick: Device) -> None:
    daemon.wait_for(BUSID)
    refused = daemon.usbipd("bind", "--busid", BUSID)
    assert refused.returncode == 1
    assert f"{BUSID} is in use on this host: {POINT} and /Volumes/EFI" in refused.stderr
    assert "--force" in refused.stderr
    assert stick.drivers == [0]
    assert mac.mounted() == ["/", POINT, "/Volumes/EFI"]


def test_force_unmounts_it(mac: Machine, daemon: MacDaemon, stick: Device) -> None:
    daemon.wait_for(BUSID)
    daemon.document("bind", "--busid", BUSID, "--force")
    assert mac.mounted() == ["/"]
    assert stick.captured
    daemon.unbind("--all")
    until(lambda: stick.drivers == [0], "the driver has not been reattached")
    daemon.stop()


def test_a_disk_that_diskutil_cannot_unmount(mac: Machine, daemon: MacDaemon, stick: Device) -> None:
    (mac.directory / "busy").write_text("disk4")
    daemon.wait_for(BUSID)
    refused = daemon.usbipd("bind", "--busid", BUSID, "--force")
    assert refused.returncode == 1
    assert "PID 4711 (/usr/bin/vim)" in refused.stderr
    assert stick.drivers == [0]


def test_a_disk_missing_in_the_registry_is_not_claimed(
    mac: Machine, daemon: MacDaemon, stick: Device
) -> None:
    """It is unknown whether it is mounted."""
    daemon.wait_for(BUSID)
    stick.unplug()
    refused = daemon.usbipd("bind", "--busid", BUSID)
    assert refused.returncode == 1
