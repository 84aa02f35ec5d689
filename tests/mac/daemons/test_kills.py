"""A daemon of a Mac: kill -9 of each process with a client attached, and a stop with slow devices."""

import os
import signal

import pytest

from tests.integration.daemon import running
from tests.mac.daemons.conftest import StartDaemon
from tests.mac.daemons.daemon import BULK_IN, PACKET, RE_ENUMERATION, MacDaemon, echo, until, use
from tests.mac.kernel import errors
from tests.mac.machine import Machine

MANY = 8
SURVIVES = pytest.mark.parametrize("survives", [False, True], ids=["capture ends", "capture survives"])
"""Whether a capture outlives its process.  Both have been reported of macOS."""


@SURVIVES
def test_worker(mac: Machine, daemon: MacDaemon, survives: bool) -> None:
    mac.kernel.switch(capture_survives_owner=survives)
    device, other = mac.plug(2), mac.plug(3)
    for each in (device, other):
        daemon.bind(each.busid)
    bystander = daemon.attach(other.busid)
    for _turn in range(3):
        session = daemon.attach(device.busid)
        session.submit(BULK_IN, length=PACKET)
        worker = daemon.worker_pid(device.busid)
        os.kill(worker, signal.SIGKILL)
        session.wait_closed()
        session.close()
        daemon.wait_for_successor(device.busid, worker)
        use(daemon, device.busid)
    echo(bystander)
    bystander.close()
    daemon.unbind("--all")
    until(lambda: device.has_all_drivers and other.has_all_drivers, "the drivers have not been reattached")


def test_server(mac: Machine, daemon: MacDaemon) -> None:
    device = mac.plug(2)
    daemon.bind(device.busid)
    with daemon.attach(device.busid) as session:
        echo(session)  # the worker holds the connection
        [server] = daemon.pids()["server"]
        os.kill(server, signal.SIGKILL)
        echo(session)
    use(daemon, device.busid)
    daemon.unbind("--all")


@SURVIVES
@pytest.mark.parametrize("bound", [True, False], ids=["bound", "no longer bound"])
@pytest.mark.parametrize("victims", ["extension", "all"])
def test_extension(mac: Machine, start: StartDaemon, victims: str, bound: bool, survives: bool) -> None:
    """The next daemon shares bound devices and releases the others, whatever the previous daemon left."""
    mac.kernel.switch(capture_survives_owner=survives)
    daemon = start()
    device, other = mac.plug(2), mac.plug(3, drivers=False)
    for each in (device, other):
        daemon.bind(each.busid)
    session = daemon.attach(device.busid)
    session.submit(BULK_IN, length=PACKET)
    if victims == "all":
        daemon.kill_all()
    else:
        pids = [pid for each in daemon.pids().values() for pid in each]
        daemon.kill()
        until(lambda: not running(pids), "a process outlives the extension")
    session.wait_closed()
    session.close()
    if not bound:
        mac.forget_bindings()
    daemon = start()
    if bound:
        for each in (device, other):
            daemon.wait_for_state(each.busid, "shared")
            use(daemon, each.busid)
        daemon.unbind("--all")
    until(lambda: device.has_all_drivers, "the drivers have not been reattached")
    daemon.stop()


@pytest.mark.parametrize("slow", [0.0, RE_ENUMERATION])
def test_stop_releases_all_devices(mac: Machine, daemon: MacDaemon, slow: float) -> None:
    mac.kernel.switch(reenumeration_seconds=slow)
    devices = [mac.plug(port) for port in range(1, MANY + 1)]
    for device in devices:
        daemon.bind(device.busid)
    daemon.stop()
    until(lambda: all(device.has_all_drivers for device in devices), "the drivers have not been reattached")


def test_release_of_a_device_left_by_a_crash(mac: Machine, start: StartDaemon) -> None:
    """The next daemon cannot release it at first: doctor prints the steps."""
    mac.kernel.switch(capture_survives_owner=True)
    daemon = start()
    device = mac.plug(2)
    daemon.bind(device.busid)
    daemon.kill_all()
    mac.forget_bindings()
    mac.kernel.call("fail", "RE_ENUMERATE", errors.NOT_RESPONDING, 100)
    daemon = start()
    [found] = daemon.checks()["drivers"]
    assert found["state"] == "warning"
    assert device.busid in found["message"]
    assert f"Run `usbipd release {device.busid}" in " ".join(found["steps"])
    assert daemon.usbipd("release", device.busid).returncode == 1
    mac.kernel.call("fail", "RE_ENUMERATE", errors.NOT_RESPONDING, 0)
    daemon.document("release", device.busid)
    assert device.has_all_drivers
    [found] = daemon.checks()["drivers"]
    assert found["state"] == "ok"
