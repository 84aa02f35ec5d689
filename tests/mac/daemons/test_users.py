"""The users of the processes of a daemon of a Mac, and their remaining access."""

from pathlib import Path

import pytest

from tests.mac.daemons.conftest import StartDaemon
from tests.mac.daemons.daemon import RE_ENUMERATION, MacDaemon, until, use
from tests.mac.machine import Machine

NOBODY_UID = 65534


def test_server_and_workers_drop_root(mac: Machine, daemon: MacDaemon) -> None:
    """Users and groups: the directory still lists the groups of root for all of them."""
    gadgets = [mac.plug(port) for port in (2, 3)]
    for gadget in gadgets:
        daemon.bind(gadget.busid)
    [server] = daemon.pids()["server"]
    workers = daemon.pids()["worker"]
    users = [uid_of(worker) for worker in workers]
    assert uid_of(server) == NOBODY_UID
    assert 0 not in users
    assert len({*users, NOBODY_UID}) == 3, "each worker has a separate user"
    for pid in (server, *workers):
        assert "\nGroups:\t \n" in status_of(pid)
        assert Path(f"/proc/{pid}/root").readlink() == daemon.socket.parent / "empty"
    for gadget in gadgets:
        for _session in range(2):
            use(daemon, gadget.busid)
    daemon.unbind("--all")
    assert all(gadget.has_all_drivers for gadget in gadgets)
    daemon.stop()


def test_without_seatbelt_no_worker_serves_if_it_is_required(mac: Machine, start: StartDaemon) -> None:
    """Linux has none, like a macOS that refuses the profile."""
    daemon = start(config='confine = "require"\n')
    gadget = mac.plug(2)
    daemon.wait_for(gadget.busid)
    refused = daemon.usbipd("bind", "--busid", gadget.busid)
    assert refused.returncode == 1
    assert gadget.has_all_drivers


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def uid_of(pid: int) -> int:
    """Real, effective, saved and file system user id, which must be equal."""
    [uid] = set(status_of(pid).partition("\nUid:\t")[2].partition("\n")[0].split("\t"))
    return int(uid)


@pytest.mark.parametrize("slow", [0.0, RE_ENUMERATION])
def test_if_opening_a_device_requires_root(mac: Machine, start: StartDaemon, slow: float) -> None:
    """A worker that has dropped root cannot reopen its device: bind is refused with advice."""
    mac.kernel.switch(open_needs_root=True, reenumeration_seconds=slow)
    daemon = start()
    gadget = mac.plug(2)
    daemon.wait_for(gadget.busid)
    refused = daemon.usbipd("bind", "--busid", gadget.busid)
    assert refused.returncode == 1
    assert 'confine = "off"' in refused.stderr
    until(lambda: gadget.has_all_drivers, "the drivers have not been reattached")
    daemon.process.terminate()
    daemon.process.wait()
    daemon = start(config='confine = "off"\n')
    daemon.bind(gadget.busid)
    use(daemon, gadget.busid)
    daemon.stop()
