"""A daemon of a Mac from start to stop: shared devices, its user, and reattached drivers."""

import json
import time
from pathlib import Path

import pytest

from tests.client import RefusedError
from tests.mac.daemons.conftest import StartDaemon
from tests.mac.daemons.daemon import MacDaemon, echo, until, use
from tests.mac.machine import PYTHONS, ROOT, Machine, for_all_users
from usbipd.protocol.constants import ST_NODEV

NOBODY_UID = 65534
LONG = 4.0
"""Seconds of a session, longer than any scan for devices takes."""


@pytest.mark.parametrize("drivers", [True, False], ids=["with drivers", "without drivers"])
def test_root_shares_a_device_and_releases_it(mac: Machine, daemon: MacDaemon, drivers: bool) -> None:
    device = mac.plug(2, drivers=drivers)
    daemon.bind(device.busid)
    worker = daemon.worker_pid(device.busid)
    assert device.device.drivers == []
    for _session in range(10):
        use(daemon, device.busid)
    assert daemon.worker_pid(device.busid) == worker, "all sessions have the same worker"
    daemon.unbind("--busid", device.busid)
    until(lambda: device.has_all_drivers, "the drivers have not been reattached")
    with pytest.raises(RefusedError) as refused:
        daemon.client.import_device(device.busid)
    assert refused.value.status == ST_NODEV
    daemon.stop()


def test_a_device_without_drivers_keeps_its_worker(mac: Machine, daemon: MacDaemon) -> None:
    """The session is longer than the replacement of a changed device's worker takes."""
    device = mac.plug(2, drivers=False)
    daemon.bind(device.busid)
    worker = daemon.worker_pid(device.busid)
    use(daemon, device.busid)
    with daemon.attach(device.busid) as session:
        begin = time.monotonic()
        while time.monotonic() - begin < LONG:
            echo(session)
    use(daemon, device.busid)
    assert daemon.worker_pid(device.busid) == worker
    daemon.stop()


@pytest.mark.skipif(
    not for_all_users(ROOT) or not any(map(for_all_users, PYTHONS)),
    reason="only this user can read the tree and Python",
)
def test_an_ordinary_user_shares_a_device_without_drivers(mac: Machine, start: StartDaemon) -> None:
    """Nothing is captured: that requires root."""
    daemon = start(user=NOBODY_UID)
    device, taken = mac.plug(2, drivers=False), mac.plug(3)
    daemon.bind(device.busid)
    worker = daemon.worker_pid(device.busid)
    assert not device.device.captured
    for _session in range(3):
        use(daemon, device.busid)
    assert daemon.worker_pid(device.busid) == worker
    daemon.wait_for(taken.busid)
    refused = daemon.usbipd("bind", "--busid", taken.busid)
    assert refused.returncode == 1
    assert "is held by the driver AppleUserUSBHostHIDDevice" in refused.stderr
    assert "as root" in refused.stderr
    assert taken.has_all_drivers
    [rights] = daemon.checks()["rights"]
    assert rights["state"] == "warning"
    assert "not as root" in rights["message"]
    daemon.unbind("--all")


def test_doctor_of_a_healthy_mac(mac: Machine, daemon: MacDaemon) -> None:
    mac.load_launchd_job()
    device = mac.plug(2)
    daemon.bind(device.busid)
    checks = daemon.checks()
    assert [each for found in checks.values() for each in found if each["state"] == "failed"] == []
    warned = {name for name, found in checks.items() for each in found if each["state"] == "warning"}
    assert warned - {"libusb"} == {"rights", "confinement"}, "user _usbipd and Seatbelt are missing"
    assert "org.usbipd.extension" in checks["launchd"][0]["message"]
    assert "15.4" in checks["macos"][0]["message"]
    mac.unload_launchd_job()
    [launchd] = daemon.checks()["launchd"]
    assert launchd["state"] == "failed"
    assert "Login Items" in " ".join(launchd["steps"])


def test_report_of_a_mac(mac: Machine, daemon: MacDaemon, tmp_path: Path) -> None:
    device = mac.plug(2)
    daemon.bind(device.busid)
    file = tmp_path / "report.json"
    done = daemon.usbipd("doctor", "--report", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["host"]["system"] == "macOS"
    assert report["host"]["model"] == "Mac14,7"
