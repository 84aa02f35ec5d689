"""The worker's main against a fake extension: however it ends, it releases the device."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from tests.as_mac import Mac
from tests.one_size_memory import memory_of_one_size
from usbipd import _pump, log
from usbipd.counters import COUNTER_PAGE_SIZE, counter_page
from usbipd.errors import UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import (
    CHILDREN,
    USELESS_WHEN_CONFINED,
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    Confinement,
    DetachedParameters,
    LogParameters,
)
from usbipd.ipc.conversation import Conversation, Event, Request, Response, read_result, request_frame
from usbipd.ipc.framing import send_some
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.privileges import RunAs
from usbipd.protocol.constants import LINUX_EPROTO
from usbipd.simulated.catalog import create
from usbipd.simulated.loopback import Loopback
from usbipd.simulated.spec import SimulatedSpec
from usbipd.worker import process
from usbipd.worker.held_device import HeldSimulatedDevice
from usbipd.worker.process import Worker


class Watched(HeldSimulatedDevice):
    """Counts its releases and repeated claims."""

    given_back = 0
    claimed_again = 0
    problem: UsbipdError | None = None
    """The error of a repeated claim."""

    def claim_again(self) -> None:
        self.claimed_again += 1
        if self.problem is not None:
            raise self.problem

    def give_back(self) -> list[str]:
        self.given_back += 1
        return super().give_back()


def parameters(
    budget: int = _pump.SMALLEST_BUDGET, confined: Confinement | None = None, **changes: str
) -> ClaimParameters:
    """The parameters of CLAIM."""
    return ClaimParameters(
        busid="sim-1",
        path="/simulated",
        busnum=1,
        devnum=1,
        simulated=SimulatedSpec(name="loopback", options={}),
        confinement=confined,
        transfer_budget=budget,
        device_memory="auto",
        **{"log_level": "info", "log_to": "stderr"} | changes,
    )


class Extension:
    """The other end of the worker's channel; it sends in advance, the worker reads when it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._socket, theirs = socket.socketpair()
        self.channel = BlockingChannel(theirs, "worker", CHILDREN)
        self._ours = BlockingChannel(self._socket, "extension", CHILDREN)
        self._asked = 0
        self._clients: list[socket.socket] = []
        self._sent = contextlib.ExitStack()
        """Sent descriptors stay open: macOS may break one that is only in flight."""
        self.held: list[Watched] = []
        self.problem: BaseException | None = None
        monkeypatch.setattr(process, "hold_device", self._hold)

    def _hold(self, parameters: ClaimParameters) -> Watched:
        if self.problem is not None:
            raise self.problem
        self.held.append(Watched(parameters, create("loopback", {})))
        return self.held[-1]

    def say(self, command: Command, parameters: Message, descriptor: int | None = None) -> None:
        self._asked += 1
        frame = request_frame(
            self._asked, "extension", command, parameters, descriptor=descriptor is not None
        )
        send_some(self._socket, frame, descriptor)

    def claim(
        self,
        budget: int = _pump.SMALLEST_BUDGET,
        confined: Confinement | None = None,
        page: int | None = None,
        **changes: str,
    ) -> None:
        """`page` is the memory of its counters, which `close` closes."""
        page = counter_page()[1] if page is None else page
        self._sent.callback(os.close, page)
        self.say(Command.CLAIM, parameters(budget, confined, **changes), page)

    def start(self) -> Worker:
        """A worker that has its device."""
        self.claim()
        worker = process._start(self.channel)
        self.result(ClaimResult)
        return worker

    def attach(self) -> socket.socket:
        """A client; its end of the connection."""
        client, theirs = socket.socketpair()
        client.settimeout(5.0)
        self._sent.enter_context(theirs)
        self.say(Command.ATTACH, AttachParameters(client="somebody"), theirs.fileno())
        self._clients.append(client)
        return client

    def leave(self) -> None:
        """The extension dies, but the worker's messages can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def received(self) -> Request | Response | Event | None:
        return self._ours.receive(timeout=5.0)

    def result(self, kind: type[Message]) -> Message:
        response = self.received()
        assert isinstance(response, Response)
        return read_result(response, kind)

    def events(self) -> list[EventName]:
        """All messages of the worker since then, once it has ended."""
        found = []
        self.channel.close()
        while (item := self.received()) is not None:
            assert isinstance(item, Event)
            found.append(item.event)
        return found

    def close(self) -> None:
        self._ours.close()
        self.channel.close()
        for client in self._clients:
            client.close()
        self._sent.close()


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Extension]:
    extension = Extension(monkeypatch)
    yield extension
    extension.close()


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """A worker sets the log level of its process."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def serve(worker: Worker) -> None:
    """Until the extension is gone."""
    with pytest.raises(process._Ended):
        worker.run()


def test_a_failed_claim_is_undone(extension: Extension) -> None:
    extension.claim(budget=1000)
    with pytest.raises(ValueError, match="budget 1000 is below"):
        process._start(extension.channel)
    assert [held.given_back for held in extension.held] == [1]
    with pytest.raises(UsbipdError, match=r"the worker failed: ValueError\('budget 1000 is below"):
        extension.result(ClaimResult)


def test_the_memory_of_the_counters_is_only_mapped(extension: Extension) -> None:
    """On macOS its descriptor allows nothing else."""
    extension.claim(page=memory_of_one_size(COUNTER_PAGE_SIZE))
    process._start(extension.channel)
    assert isinstance(extension.result(ClaimResult), ClaimResult)


@pytest.mark.parametrize(
    ("problem", "message", "code"),
    [
        (UsbipdError("somebody has it", code="LIBUSB_ERROR_BUSY"), "somebody has it", "LIBUSB_ERROR_BUSY"),
        (MemoryError(), r"the worker failed: MemoryError\(\)", "worker-failed"),
        (OSError(24, "Too many open files"), "the worker failed: OSError.*Too many open", "worker-failed"),
        (SystemExit(1), "the worker cannot drop its rights", "worker-failed"),
    ],
)
def test_a_failed_claim_is_reported_to_the_extension(
    extension: Extension, problem: BaseException, message: str, code: str
) -> None:
    extension.problem = problem
    extension.claim()
    with pytest.raises(type(problem)):
        process._start(extension.channel)
    with pytest.raises(UsbipdError, match=message) as caught:
        extension.result(ClaimResult)
    assert caught.value.code == code


def test_the_end_of_the_extension_is_not_a_warning(
    extension: Extension, caplog: pytest.LogCaptureFixture
) -> None:
    worker = extension.start()
    extension.leave()
    with caplog.at_level("INFO"):
        serve(worker)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "the extension closed the channel: releasing the device")
    ]
    assert [held.given_back for held in extension.held] == [1]


def test_an_error_of_the_system_releases_the_device(extension: Extension) -> None:
    worker = extension.start()
    with open(os.devnull, "rb") as no_socket:  # noqa: PTH123 - its descriptor is all we want
        extension.say(Command.ATTACH, AttachParameters(client="nobody"), no_socket.fileno())
    with pytest.raises(OSError, match="non-socket"):
        worker.run()
    assert [held.given_back for held in extension.held] == [1]


def test_logs_go_to_the_destination_in_the_claim(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    destinations: list[str] = []
    monkeypatch.setattr(log, "send_to", destinations.append)
    extension.claim(log_level="warning", log_to="syslog")
    process._start(extension.channel)
    assert destinations == ["syslog"]
    assert logging.getLogger().level == logging.WARNING


def test_the_log_socket_is_opened_outside_the_network_of_the_host(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps before the claim."""
    steps: list[str] = []
    monkeypatch.setattr(log, "send_to", steps.append)
    monkeypatch.setattr(process.confinement, "leave_network", lambda: steps.append("leave the network"))
    extension.problem = UsbipdError("no such device")
    extension.claim(log_to="syslog", confined=Confinement(run_as=None, root=None))
    with pytest.raises(UsbipdError, match="no such device"):
        process._start(extension.channel)
    assert steps == ["leave the network", "syslog"]


def test_on_macos_it_claims_drops_and_enters_the_sandbox_before_it_answers(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def step(name: str, result: object = None) -> Callable[..., object]:
        def take(*_arguments: object, **_options: object) -> object:
            steps.append(name)
            return result

        return take

    confinement = process.confinement
    monkeypatch.setattr(confinement, "sys", Mac())  # also without a network namespace
    monkeypatch.setattr(confinement, "_enter", step("root directory"))
    monkeypatch.setattr(confinement, "_limit", step("limits"))
    monkeypatch.setattr(confinement.privileges, "drop", step("user", "70000"))
    monkeypatch.setattr(confinement.seatbelt, "restrict", step("profile"))
    monkeypatch.setattr(confinement.seatbelt, "attempts", step("proof", ()))
    device = Watched(parameters(), create("loopback", {})).device()
    monkeypatch.setattr(Watched, "device", step("claimed", device))
    monkeypatch.setattr(Watched, "claim_again", step("claimed again"))
    monkeypatch.setattr(extension.channel, "respond", step("ready"))
    order = Confinement(run_as=RunAs(user="70000", uid=70000, gid=70000), root="/empty")
    extension.claim(confined=order)
    process._start(extension.channel)
    assert steps == [
        "claimed",
        "root directory",
        "limits",
        "user",
        "profile",
        "proof",
        "claimed again",
        "ready",
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("LIBUSB_ERROR_ACCESS", USELESS_WHEN_CONFINED),
        ("LIBUSB_ERROR_NO_DEVICE", "LIBUSB_ERROR_NO_DEVICE"),  # unplugged: unrelated to confinement
    ],
)
def test_a_device_that_a_confined_worker_cannot_claim_again(
    extension: Extension, monkeypatch: pytest.MonkeyPatch, code: str, expected: str
) -> None:
    confined = process.confinement.Confined("70000")
    monkeypatch.setattr(process.confinement, "leave_network", lambda: None)
    monkeypatch.setattr(process.confinement, "confine", lambda *_a, **_k: confined)
    monkeypatch.setattr(Watched, "problem", UsbipdError("interface 0 cannot be claimed", code=code))
    extension.claim(confined=Confinement(run_as=None, root=None))
    with pytest.raises(UsbipdError):
        process._start(extension.channel)
    with pytest.raises(UsbipdError, match="interface 0 cannot be claimed") as caught:
        extension.result(ClaimResult)
    assert caught.value.code == expected
    assert [held.given_back for held in extension.held] == [1]


def test_an_unconfined_worker_claims_once(extension: Extension) -> None:
    extension.start()
    assert [held.claimed_again for held in extension.held] == [0]


def test_missing_layers_of_confinement_are_reported(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    confined = process.confinement.Confined("70000", "there is no filter")
    monkeypatch.setattr(process.confinement, "confine", lambda *_a, **_k: confined)
    extension.claim()
    process._start(extension.channel)
    result = extension.result(ClaimResult)
    assert isinstance(result, ClaimResult)
    assert (result.user, result.lacks) == confined


def test_the_log_level_can_change(extension: Extension) -> None:
    worker = extension.start()
    extension.say(Command.LOG, LogParameters(level="debug"))
    extension.say(Command.LOG, LogParameters(level="loud"))
    extension.leave()
    serve(worker)
    assert extension.result(Nothing) == Nothing()
    with pytest.raises(UsbipdError, match="unknown log level 'loud'"):
        extension.result(Nothing)
    assert logging.getLogger().level == logging.DEBUG


def test_a_new_log_file_is_used(extension: Extension, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, bool]] = []
    worker = extension.start()
    with tempfile.TemporaryFile() as file:
        expected = os.fstat(file.fileno())
        monkeypatch.setattr(
            log, "take_over", lambda fd: taken.append((fd, os.path.samestat(os.fstat(fd), expected)))
        )
        extension.say(Command.LOG_FILE, Nothing(), file.fileno())
        extension.leave()
        serve(worker)
        [(descriptor, is_the_file)] = taken
        assert is_the_file
        with contextlib.suppress(OSError):
            assert not os.path.samestat(os.fstat(descriptor), expected), "what came is closed"
    assert extension.result(Nothing) == Nothing()


def test_a_client_is_disconnected_and_the_next_one_served(extension: Extension) -> None:
    worker = extension.start()
    client = extension.attach()
    extension.say(Command.DISCONNECT, Nothing())
    other = extension.attach()
    extension.leave()
    serve(worker)
    assert client.recv(1) == b""
    assert other.recv(1) == b""
    assert extension.result(Nothing) == Nothing()
    event = extension.received()
    assert event == Event(EventName.DETACHED, DetachedParameters(reason="ended on request"))
    assert extension.result(Nothing) == Nothing()
    assert extension.received() == Event(EventName.RESTORED, Nothing())
    assert extension.result(Nothing) == Nothing(), "the next client is attached"
    assert extension.events() == []
    assert [held.given_back for held in extension.held] == [1]


def test_a_client_is_disconnected_before_the_answer(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the client's connection is closed and the device is not ready yet."""
    worker = extension.start()
    client = extension.attach()
    seen: list[bytes | EventName] = []
    respond, restore = extension.channel.respond, worker._restore

    def responding(request: Request, reply: Message | UsbipdError) -> None:
        if request.command is Command.DISCONNECT:
            seen.append(client.recv(1))
        respond(request, reply)

    def restoring() -> None:
        seen.append(EventName.RESTORED)
        restore()

    monkeypatch.setattr(extension.channel, "respond", responding)
    monkeypatch.setattr(worker, "_restore", restoring)
    extension.say(Command.DISCONNECT, Nothing())
    extension.leave()
    serve(worker)
    assert seen == [b"", EventName.RESTORED]


def test_the_connection_is_closed_before_its_urbs_are_cancelled(
    extension: Extension, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device may take long to complete them."""
    worker = extension.start()
    client = extension.attach()
    seen: list[bytes] = []

    class Pump:
        """The worker's pump, which also checks the client."""

        def __init__(self, pump: _pump.Pump) -> None:
            self._pump = pump

        def __getattr__(self, name: str) -> object:
            return getattr(self._pump, name)

        def finish(self) -> bool:
            seen.append(client.recv(1))
            return self._pump.finish()

    monkeypatch.setattr(worker, "_pump", Pump(worker._pump))
    extension.say(Command.DISCONNECT, Nothing())
    extension.leave()
    serve(worker)
    assert seen == [b""]


def test_a_reset_that_fails_is_logged(
    extension: Extension, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_model: Loopback) -> None:
        raise OSError(5, "Input/output error")

    worker = extension.start()
    extension.attach()
    extension.say(Command.DISCONNECT, Nothing())
    extension.leave()
    monkeypatch.setattr(Loopback, "reset", fail)
    serve(worker)
    assert f"resetting the device failed: Linux errno {LINUX_EPROTO}" in caplog.text


def test_it_answers_a_ping(extension: Extension) -> None:
    worker = extension.start()
    extension.say(Command.PING, Nothing())
    extension.attach()
    extension.say(Command.PING, Nothing())
    extension.leave()
    serve(worker)
    assert [extension.result(Nothing) for _answer in range(3)] == [Nothing()] * 3


def test_disconnect_without_a_client(extension: Extension) -> None:
    worker = extension.start()
    extension.say(Command.DISCONNECT, Nothing())
    extension.leave()
    serve(worker)
    with pytest.raises(UsbipdError, match="no client is attached") as caught:
        extension.result(Nothing)
    assert caught.value.code == "not-attached"
    assert extension.events() == []


def test_a_client_that_has_just_left_is_not_disconnected(extension: Extension) -> None:
    worker = extension.start()
    extension.attach().close()
    worker._serve(worker._pump.run())
    worker._serve(worker._pump.run())
    extension.say(Command.DISCONNECT, Nothing())
    extension.leave()
    serve(worker)
    assert extension.result(Nothing) == Nothing()
    detached, restored = extension.received(), extension.received()
    assert isinstance(detached, Event)
    assert detached.parameters == DetachedParameters(reason="the client closed the connection")
    assert restored == Event(EventName.RESTORED, Nothing())
    with pytest.raises(UsbipdError, match="no client is attached"):
        extension.result(Nothing)


WORKER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
from usbipd.worker.process import main
sys.exit(main(["1-1"]))
"""


@pytest.mark.parametrize(
    ("said", "code", "lines"),
    [
        (b"", 0, []),
        (b"GET / HTTP/1.1", 1, ["frame of 1195725856 bytes: must be 1 to 65536"]),
        (
            Conversation(CHILDREN).hello() + request_frame(1, "extension", Command.RELEASE, Nothing()),
            1,
            ["the first order to a worker is CLAIM with the counter page"],
        ),
    ],
    ids=["the extension is gone", "rubbish", "an order that does not come first"],
)
def test_the_exit_code_reports_success(said: bytes, code: int, lines: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        _output, log = worker.communicate(timeout=20)
    assert worker.returncode == code
    assert [line.partition(" 1-1: ")[2] for line in log.splitlines()] == lines
