"""Unplugged and replugged devices, and sleep, under a daemon of a Mac."""

from tests.client import Session
from tests.mac.daemons.daemon import BULK_IN, PACKET, MacDaemon, echo, use
from tests.mac.machine import Machine

MANY = 8
HARDWARE_ID = "1d6b:01f9"


def test_replugged_in_use(mac: Machine, daemon: MacDaemon) -> None:
    device = mac.plug(2)
    daemon.bind(device.busid)
    for _turn in range(3):
        session = daemon.attach(device.busid)
        waiting = session.submit(BULK_IN, length=PACKET)
        device.device.unplug()
        session.wait_closed()
        assert waiting not in session.replies or session.replies[waiting].status != 0
        session.close()
        daemon.wait_until_gone(device.busid)
        device.device.replug()
        daemon.wait_for_state(device.busid, "shared")
        use(daemon, device.busid)
    assert [each["event"] for each in daemon.history("unplugged")] == ["unplugged"] * 3
    daemon.stop()


def test_replugged_before_the_next_scan(mac: Machine, daemon: MacDaemon) -> None:
    device = mac.plug(2)
    daemon.bind(device.busid)
    for _turn in range(3):
        worker = daemon.worker_pid(device.busid)
        session = daemon.attach(device.busid)
        device.device.unplug()
        device.device.replug()
        session.wait_closed()
        session.close()
        daemon.wait_for_successor(device.busid, worker)
        use(daemon, device.busid)
    daemon.stop()


def test_another_port(mac: Machine, daemon: MacDaemon) -> None:
    """A binding by port stays with its port; one by hardware id follows the device."""
    first, second = mac.plug(2), mac.plug(3)
    daemon.bind(first.busid)
    daemon.wait_for(second.busid)
    daemon.document("bind", "--hardware-id", HARDWARE_ID, "--serial", second.serial)
    for device, port in ((first, 5), (second, 6)):
        device.device.unplug()
        daemon.wait_until_gone(device.busid)
        device.plug(port)
    daemon.wait_for_state(second.busid, "shared")
    use(daemon, second.busid)
    listed = daemon.listed(first.busid)
    assert listed is not None
    assert listed["state"] == "not shared"
    assert first.has_all_drivers
    first.device.unplug()
    first.plug(2)
    daemon.wait_for_state(first.busid, "shared")
    use(daemon, first.busid)
    daemon.stop()


def test_devices_stay_while_others_come_and_go(mac: Machine, daemon: MacDaemon) -> None:
    devices = [mac.plug(port) for port in range(1, MANY + 1)]
    for device in devices:
        daemon.bind(device.busid)
    stay, move = devices[:3], devices[3:]
    sessions = [daemon.attach(device.busid) for device in stay]
    workers = [daemon.worker_pid(device.busid) for device in devices]
    for _turn in range(4):
        for device in move:
            device.device.unplug()
            echo_all(sessions)
        for device in move:
            device.device.replug()
            echo_all(sessions)
    for device, worker in zip(move, workers[3:], strict=True):
        daemon.wait_for_successor(device.busid, worker)
        use(daemon, device.busid)
    echo_all(sessions)
    assert [daemon.worker_pid(device.busid) for device in stay] == workers[:3]
    daemon.unbind("--all")
    for session in sessions:
        session.wait_closed()
        session.close()
    assert [device.has_all_drivers for device in devices] == [True] * MANY


def echo_all(sessions: list[Session]) -> None:
    for session in sessions:
        echo(session)


def test_many_devices_bound_and_unbound_repeatedly(mac: Machine, daemon: MacDaemon) -> None:
    """Workers exit while the devices of others come and go: none of them hangs."""
    devices = [mac.plug(port) for port in range(1, MANY + 1)]
    for device in devices:
        daemon.wait_for(device.busid)
    for _turn in range(3):
        for device in devices:
            daemon.bind(device.busid)
        daemon.unbind("--all")
        assert [device.has_all_drivers for device in devices] == [True] * MANY
    assert "SIGKILL" not in daemon.log_text()
    daemon.stop()


def test_sleep_and_wake(mac: Machine, daemon: MacDaemon) -> None:
    """One device stays, one is enumerated again, one is unplugged meanwhile."""
    stays, returns, leaves = gadgets = [mac.plug(port) for port in (2, 3, 4)]
    for gadget in gadgets:
        daemon.bind(gadget.busid)
    workers = [daemon.worker_pid(gadget.busid) for gadget in gadgets]
    sessions = [daemon.attach(gadget.busid) for gadget in gadgets]
    assert mac.kernel.sleep()
    daemon.log.wait_for("this Mac is going to sleep")
    returns.device.replug()
    leaves.device.unplug()
    mac.kernel.wake()
    daemon.log.wait_for("this Mac has woken up")
    echo(sessions[0])
    for session in sessions[1:]:
        session.wait_closed()
    for session in sessions:
        session.close()
    use(daemon, stays.busid)
    assert daemon.worker_pid(stays.busid) == workers[0]
    daemon.wait_for_successor(returns.busid, workers[1])
    use(daemon, returns.busid)
    daemon.wait_until_gone(leaves.busid)
    daemon.stop()
