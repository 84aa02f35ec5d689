"""Checks of the daemon's parts: store, sockets, children, bindings."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.extension.healthy_daemon import (
    FakeChannel,
    FakeManager,
    FakeServer,
    FakeStore,
    binding,
    child,
    device,
    finding,
    findings,
    linux,
    make_context,
    shared_device,
)
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension import daemon_checks, liveness
from usbipd.extension.check_context import CheckContext
from usbipd.extension.daemon_checks import (
    LONGEST_CALL,
    check_bindings,
    check_captured,
    check_control_socket,
    check_exposure,
    check_orphans,
    check_server,
    check_store,
    check_workers,
)
from usbipd.extension.device import ClaimState, Failure
from usbipd.extension.store_file import KEPT_ASIDE
from usbipd.extension.supervisor import Child
from usbipd.findings import Finding
from usbipd.ipc.control_messages import CheckState
from usbipd.ipc.row import Role
from usbipd.usb.identity import DeviceRule


def test_store() -> None:
    assert finding(check_store, make_context()).state is CheckState.OK


def test_store_with_problems() -> None:
    """A present problem fails; a past repair and a file set aside are warnings."""
    wrong = [
        UsbipdError("it cannot be written", code="store", advice="free some space"),
        UsbipdError("it was kept", code=KEPT_ASIDE, advice="Look at it.\nRemove it."),
    ]
    found = findings(check_store, make_context(store=FakeStore(problems=["it was damaged"], wrong=wrong)))
    assert [(each.state, each.message) for each in found] == [
        (CheckState.WARNING, "it was damaged"),
        (CheckState.FAILED, "it cannot be written"),
        (CheckState.WARNING, "it was kept"),
    ]
    assert [each.steps for each in found[1:]] == [("Free some space",), ("Look at it.", "Remove it.")]


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """The path of a control socket of this user's daemon."""
    directory = tmp_path / "run"
    directory.mkdir(0o700)
    path = directory / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666 if os.geteuid() == 0 else 0o600)
        yield path


def look_at(control: Path) -> Finding:
    return finding(check_control_socket, make_context(control_socket=control, host=linux(uid=os.geteuid())))


def test_control_socket(control: Path) -> None:
    assert look_at(control).state is CheckState.OK


def test_control_socket_removed(control: Path) -> None:
    control.unlink()
    found = look_at(control)
    assert found.state is CheckState.FAILED
    assert str(control) in found.message


def test_control_socket_replaced_by_a_file(control: Path) -> None:
    control.unlink()
    control.touch()
    found = look_at(control)
    assert found.state is CheckState.FAILED
    assert "not the daemon's socket" in found.message
    assert not any("emove" in step for step in found.steps), "the file is not ours"


def test_control_socket_of_another_user(control: Path) -> None:
    host = linux(uid=os.geteuid() + 1)
    found = finding(check_control_socket, make_context(control_socket=control, host=host))
    assert found.state is CheckState.FAILED
    assert "not the daemon's socket" in found.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_control_socket_in_a_directory_of_another_user(control: Path) -> None:
    os.chown(control.parent, 54321, -1)
    found = look_at(control)
    assert found.state is CheckState.FAILED
    assert "uid 54321" in found.message
    advice = " ".join(found.steps)
    assert "chmod" not in advice, "the directory is not ours"
    assert "emove" not in advice


def test_control_socket_with_another_mode(control: Path) -> None:
    control.chmod(0o640)
    found = look_at(control)
    assert found.state is CheckState.FAILED
    assert "0640" in found.message


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_control_socket_in_a_directory_that_others_write(control: Path, mode: int) -> None:
    control.parent.chmod(mode)
    found = look_at(control)
    assert found.state is CheckState.FAILED
    assert f"{mode:04o}" in found.message


@pytest.fixture
def port() -> Iterator[int]:
    """A port with a listener on every IPv4 address; each connection waits in the backlog."""
    with socket.create_server(("", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A reserved port without a listener."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_network(port: int, host: str) -> None:
    found = finding(check_server, make_context(server=FakeServer(listening=[f"{host}:{port}"])))
    assert found.state is CheckState.OK
    assert f"{host}:{port}" in found.message


@pytest.mark.parametrize("host", ["[::1]", "[::]"])
def test_network_ipv6(host: str) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no IPv6")
    with listener:
        listening = [f"{host}:{listener.getsockname()[1]}"]
        assert (
            finding(check_server, make_context(server=FakeServer(listening=listening))).state is CheckState.OK
        )


def test_network_on_every_address_is_tried_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to 0.0.0.0 or :: reaches this host on some systems only."""
    tried = []

    def resolve(host: str, port: int, **_how: object) -> list[Any]:
        tried.append((host, port))
        raise OSError(errno.ECONNREFUSED, "")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    findings(check_server, make_context(server=FakeServer(listening=["0.0.0.0:1", "[::]:2", "192.0.2.1:3"])))
    assert tried == [("127.0.0.1", 1), ("::1", 2), ("192.0.2.1", 3)]


def test_network_connections_are_closed_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listening = [f"127.0.0.1:{listener.getsockname()[1]}"]
        findings(check_server, make_context(server=FakeServer(listening=listening)))
        connection, _address = listener.accept()
        with connection:
            assert connection.recv(1) == b""


def test_network_with_an_address_that_does_not_answer(port: int, closed_port: int) -> None:
    listening = [f"127.0.0.1:{closed_port}", f"127.0.0.1:{port}"]
    found = finding(check_server, make_context(server=FakeServer(listening=listening)))
    assert found.state is CheckState.FAILED
    assert found.message == f"127.0.0.1:{closed_port} accepts no connections: Connection refused"


def test_network_with_a_listener_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backlog is full: the system neither accepts nor refuses connections."""
    monkeypatch.setattr(daemon_checks, "CONNECT_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        address = listener.getsockname()
        clients = [socket.socket() for _each in range(8)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        found = finding(check_server, make_context(server=FakeServer(listening=[f"127.0.0.1:{address[1]}"])))
        for client in clients:
            client.close()
    assert found.state is CheckState.FAILED
    assert "no answer within 0.1 s" in found.message


def test_network_without_a_server(port: int) -> None:
    """Another program listens there."""
    listening = [f"127.0.0.1:{port}"]
    found = finding(check_server, make_context(server=FakeServer(None, listening)))
    assert found.state is CheckState.FAILED
    dead = child(Role.SERVER)
    dead.ended.set()
    assert finding(check_server, make_context(server=FakeServer(dead, listening))).state is CheckState.FAILED


def exposed(allow: tuple[str, ...] = (), **changes: Any) -> CheckContext:
    """A server that listens on all addresses and accepts the clients in `allow`."""
    return make_context(
        server=FakeServer(listening=["127.0.0.1:3240", "0.0.0.0:3241"], allow=[*allow]), **changes
    )


def test_exposure_of_loopback_only() -> None:
    server = FakeServer(listening=["127.0.0.1:3240", "[::1]:3240"])
    assert finding(check_exposure, make_context(server=server)).state is CheckState.OK


def test_exposure_to_all_hosts() -> None:
    found = finding(check_exposure, exposed())
    assert found.state is CheckState.WARNING
    assert "0.0.0.0:3241" in found.message
    assert "127.0.0.1:3240" not in found.message
    assert "1234:5678 at 1-2" in found.message
    assert "no login and no encryption" in found.message
    assert any('allow = ["192.168.1.0/24"]' in step for step in found.steps)


def test_exposure_without_bindings() -> None:
    assert finding(check_exposure, exposed(manager=FakeManager(bindings=[]))).state is CheckState.WARNING


def test_exposure_with_an_allow_list() -> None:
    found = finding(check_exposure, exposed(("192.0.2.0/24",)))
    assert found.state is CheckState.OK
    assert "192.0.2.0/24" in found.message


def test_exposure_of_devices_with_access_lists() -> None:
    listed = binding("1-3", allow=["192.0.2.7"])
    assert finding(check_exposure, exposed(manager=FakeManager(bindings=[listed]))).state is CheckState.OK
    found = finding(check_exposure, exposed(manager=FakeManager(bindings=[listed, binding()])))
    assert found.state is CheckState.WARNING
    assert "1-3" not in found.message


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        (DeviceRule(busid="1-2"), CheckState.OK),
        (DeviceRule(0x1234, 0x5678), CheckState.OK),
        (DeviceRule(0x1234, 0x5679), CheckState.WARNING),
        (DeviceRule(0x1234, 0x5678, serial="S1"), CheckState.WARNING),
        (DeviceRule(busid="1-3"), CheckState.WARNING),
    ],
)
def test_exposure_with_a_table_in_the_configuration(rule: DeviceRule, state: CheckState) -> None:
    assert finding(check_exposure, exposed(access=[rule])).state is state


def test_workers() -> None:
    shared = {"1-2": shared_device(), "1-3": shared_device("1-3", state=ClaimState.CLAIMING, worker=None)}
    found = finding(check_workers, make_context(manager=FakeManager(shared_devices=shared)))
    assert (found.state, found.message) == (CheckState.OK, "workers that answer: 1")


def test_workers_that_have_ended() -> None:
    over, closed = child(busid="1-3"), child(busid="1-4")
    over.ended.set()
    closed.channel.close()
    shared = {
        "1-2": shared_device("1-2", worker=None),
        "1-3": shared_device("1-3", worker=over, state=ClaimState.ATTACHED),
        "1-4": shared_device("1-4", worker=closed, state=ClaimState.RESTORING),
    }
    found = findings(check_workers, make_context(manager=FakeManager(shared_devices=shared)))
    assert [each.state for each in found] == [CheckState.FAILED] * 3
    assert [busid in each.message for busid, each in zip(shared, found, strict=True)] == [True] * 3


def silent(role: Role = Role.WORKER, *, pid: int | None = None) -> Child:
    """A child that runs but does not answer."""
    return replace(child(role, "1-2", pid=pid), channel=FakeChannel(silent=True))  # type: ignore[arg-type]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PING_TIMEOUT", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("uid", "sudo"), [(0, "sudo "), (1000, "")])
def test_a_worker_that_is_stopped(uid: int, sudo: str) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            shared = {"1-2": shared_device(worker=silent(pid=process.pid))}
            context = make_context(manager=FakeManager(shared_devices=shared), host=linux(uid=uid))
            found = finding(check_workers, context)
        finally:
            process.kill()
    assert found.state is CheckState.FAILED
    assert f"worker[{process.pid}] 1-2 is suspended" in found.message
    assert found.steps == (f"Resume it: `{sudo}kill -CONT {process.pid}`.",)


TRACED = """
import ctypes, os, signal
assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0  # PTRACE_TRACEME
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="traces as Linux does")
@pytest.mark.usefixtures("impatient")
def test_a_worker_that_a_debugger_has_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", TRACED]) as process:
        try:
            os.waitpid(process.pid, os.WUNTRACED)
            shared = {"1-2": shared_device(worker=silent(pid=process.pid))}
            found = finding(check_workers, make_context(manager=FakeManager(shared_devices=shared)))
        finally:
            process.kill()
    assert found.state is CheckState.FAILED
    assert f"worker[{process.pid}] 1-2 is suspended" in found.message


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_runs_and_does_not_answer() -> None:
    found = finding(
        check_workers,
        make_context(manager=FakeManager(shared_devices={"1-2": shared_device(worker=silent())})),
    )
    assert found.state is CheckState.FAILED
    assert f"worker[{os.getpid()}] 1-2 has not answered for" in found.message
    assert f"kill -KILL {os.getpid()}" in found.steps[0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("seconds", "state", "text"),
    [
        (4.2, CheckState.WARNING, "has been waiting for its device for 4 s"),
        (LONGEST_CALL, CheckState.FAILED, "has not answered for"),
    ],
)
def test_a_worker_that_waits_for_its_device(seconds: float, state: CheckState, text: str) -> None:
    """It is not reported as dead as long as its device may still answer."""
    shared = {"1-2": shared_device(worker=silent(), waits_for_device=seconds)}
    found = finding(check_workers, make_context(manager=FakeManager(shared_devices=shared)))
    assert found.state is state
    assert text in found.message


def test_a_worker_that_answers_is_ok_although_it_waits() -> None:
    shared = {"1-2": shared_device(waits_for_device=4.2)}
    assert (
        finding(check_workers, make_context(manager=FakeManager(shared_devices=shared))).state
        is CheckState.OK
    )


@pytest.mark.usefixtures("impatient")
def test_a_server_that_does_not_answer_although_the_kernel_accepts(port: int) -> None:
    server = FakeServer(silent(Role.SERVER), listening=[f"127.0.0.1:{port}"])
    found = finding(check_server, make_context(server=server))
    assert found.state is CheckState.FAILED
    assert "has not answered" in found.message
    assert "kill -KILL" in found.steps[0]


def test_captured() -> None:
    found = finding(check_captured, make_context())
    assert (found.state, found.message) == (CheckState.OK, "detached from their drivers: 1-2")


def test_captured_but_a_driver_holds_a_part() -> None:
    found = finding(check_captured, make_context(manager=FakeManager(devices=[device(drivers=["usbhid"])])))
    assert found.state is CheckState.WARNING
    assert "usbhid" in found.message


def test_devices_that_were_left_without_drivers() -> None:
    found = finding(check_orphans, make_context())
    assert (found.state, found.message) == (CheckState.OK, "no device was left without its drivers")
    found = finding(check_orphans, make_context(manager=FakeManager(left=["1-4"])))
    assert found.state is CheckState.WARNING
    assert found.message.startswith("1-4 has no driver: ")
    assert found.steps[0] == "Run `usbipd release 1-4`."


def test_captured_considers_only_claimed_real_devices() -> None:
    shared = {
        "1-2": shared_device("1-2", state=ClaimState.FAILED, worker=None),
        "240-1": shared_device("240-1", simulated=True),
    }
    devices = [
        device("1-2", drivers=["usb-storage"]),
        device("1-3", drivers=["usbhid"]),
        device("240-1", simulated=True),
    ]
    found = finding(check_captured, make_context(manager=FakeManager(shared_devices=shared, devices=devices)))
    assert (found.state, found.message) == (CheckState.OK, "no real device is claimed")


def test_no_bindings() -> None:
    found = finding(check_bindings, make_context(manager=FakeManager(bindings=[])))
    assert (found.state, found.message) == (CheckState.OK, "nothing is bound")


@pytest.mark.parametrize("state", [ClaimState.READY, ClaimState.ATTACHED])
def test_a_binding_that_works(state: ClaimState) -> None:
    manager = FakeManager(shared_devices={"1-2": shared_device(state=state)})
    found = finding(check_bindings, make_context(manager=manager))
    assert (found.state, found.message) == (CheckState.OK, f"1234:5678 at 1-2: {state.value}")


def test_a_binding_of_several_devices_reports_each() -> None:
    manager = FakeManager(
        bindings=[binding(None, devices=["1-2", "1-3"])],
        shared_devices={"1-2": shared_device(), "1-3": shared_device("1-3")},
    )
    messages = [each.message for each in findings(check_bindings, make_context(manager=manager))]
    assert messages == [f"1234:5678: {busid}: free for a client" for busid in ("1-2", "1-3")]


@pytest.mark.parametrize("state", [ClaimState.FAILED, ClaimState.CLAIMING], ids=["waiting", "trying again"])
def test_a_binding_whose_device_cannot_be_claimed(state: ClaimState) -> None:
    error = ClaimError("1-2 is in use: it is mounted on /mnt", advice="unmount it first: umount /mnt")
    manager = FakeManager(
        shared_devices={"1-2": shared_device(state=state, worker=None, failure=Failure(error, 1.7e9))}
    )
    found = finding(check_bindings, make_context(manager=manager))
    assert found.state is CheckState.FAILED
    assert found.message == "1234:5678 at 1-2: 1-2 is in use: it is mounted on /mnt"
    assert found.steps[0] == "Unmount it first: umount /mnt"
    assert "30 s" in found.steps[1]


def test_a_binding_whose_device_is_not_claimed_yet() -> None:
    assert (
        finding(check_bindings, make_context(manager=FakeManager(shared_devices={}))).state
        is CheckState.WARNING
    )


@pytest.mark.parametrize("busid", ["1-2", None])
def test_a_binding_whose_device_is_unplugged(busid: str | None) -> None:
    manager = FakeManager(bindings=[binding(busid, devices=[])], devices=[device("1-3")])
    found = finding(check_bindings, make_context(manager=manager))
    assert found.state is CheckState.OK
    assert found.message.endswith("not plugged in")


def test_a_binding_with_another_device_at_its_port() -> None:
    manager = FakeManager(bindings=[binding(devices=[])], devices=[device(product_id=0x9999, product=None)])
    found = finding(check_bindings, make_context(manager=manager))
    assert found.state is CheckState.WARNING
    assert found.message == "1234:5678 at 1-2: another device is plugged in there, 1234:9999 (unnamed device)"


def test_bindings_that_alternate_at_a_port() -> None:
    bindings = [binding(serial="S1", devices=[]), binding(serial="S2", devices=["1-2"])]
    manager = FakeManager(bindings=bindings, devices=[device(serial="S2")])
    states = [found.state for found in findings(check_bindings, make_context(manager=manager))]
    assert states == [CheckState.OK, CheckState.OK]


def test_a_binding_with_a_twin_at_its_port_hides_serial_numbers() -> None:
    manager = FakeManager(bindings=[binding(serial="S1", devices=[])], devices=[device(serial="S2")])
    found = finding(check_bindings, make_context(manager=manager))
    assert found.state is CheckState.WARNING
    assert "with another serial number" in found.message
    assert "S1" not in found.message
    assert "S2" not in found.message
