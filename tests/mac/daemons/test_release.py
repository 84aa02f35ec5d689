"""`usbipd release`, on a Mac where a capture outlives its process."""

import os
import signal

from tests.mac.daemons.conftest import StartDaemon
from tests.mac.daemons.daemon import RE_ENUMERATION, until, use
from tests.mac.machine import Gadget, Machine


def left_captured(mac: Machine, start: StartDaemon) -> Gadget:
    """A device left captured: all processes of its daemon were killed and their store was removed."""
    daemon = start()
    device = mac.plug(2)
    until(lambda: device.has_all_drivers, "its drivers have not started")
    daemon.bind(device.busid)
    daemon.kill_all()
    for file in mac.state.iterdir():
        file.unlink()
    return device


def test_a_device_unknown_to_the_daemon(mac: Machine, start: StartDaemon) -> None:
    """Its drivers are reattached, however long that takes; then it can be shared again."""
    mac.kernel.switch(capture_survives_owner=True, reenumeration_seconds=RE_ENUMERATION, driver_seconds=0.5)
    device = left_captured(mac, start)
    daemon = start()
    daemon.wait_for(device.busid)
    assert device.device.drivers == []
    released = daemon.document("release", device.busid)
    assert device.has_all_drivers
    assert len(released["drivers"]) == len(device.device.drivers)
    daemon.bind(device.busid)
    use(daemon, device.busid)
    refused = daemon.usbipd("release", device.busid)
    assert refused.returncode == 1
    assert f"unbind {device.busid}" in refused.stderr
    daemon.unbind("--all")
    until(lambda: device.has_all_drivers, "its drivers have not been reattached")
    daemon.stop()


def test_a_device_with_its_drivers_is_left_alone(mac: Machine, start: StartDaemon) -> None:
    daemon = start()
    device = mac.plug(2)
    until(lambda: device.has_all_drivers, "its drivers have not started")
    daemon.wait_for(device.busid)
    session = device.device.session
    assert daemon.document("release", device.busid)["drivers"]
    assert device.device.session == session
    daemon.stop()


def test_a_worker_killed_during_its_release(mac: Machine, start: StartDaemon) -> None:
    """No worker reclaims the device: the extension enumerates it again."""
    mac.kernel.switch(capture_survives_owner=True, reenumeration_seconds=RE_ENUMERATION)
    daemon = start()
    device = mac.plug(2)
    until(lambda: device.has_all_drivers, "its drivers have not started")
    daemon.bind(device.busid)
    os.kill(daemon.worker_pid(device.busid), signal.SIGSTOP)
    daemon.unbind("--all")
    until(lambda: device.has_all_drivers, "its drivers have not been reattached")
    assert [each["state"] for each in daemon.checks()["drivers"]] == ["ok"]
