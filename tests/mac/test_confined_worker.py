"""A whole worker on libusb's darwin backend drops root and enters the sandbox once it holds its device."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.as_mac import build_sandbox
from tests.mac.kernel import errors
from tests.mac.mac import Device, OwnMac
from tests.urb import Reply, ReplyReader, RetSubmit, Submit, encode
from usbipd import _pump
from usbipd.counters import counter_page
from usbipd.errors import UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import (
    CHILDREN,
    USELESS_WHEN_CONFINED,
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    Confinement,
    Sandbox,
)
from usbipd.ipc.conversation import Response, read_result, request_frame
from usbipd.ipc.framing import send_some
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, Nothing
from usbipd.privileges import RunAs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can capture a device and drop root")
UID = 65537
PATIENCE = 20.0


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sandbox(tmp_path_factory.mktemp("sandbox"))


Answer = TypeVar("Answer", bound=Message)


class Extension:
    """The extension's end of a worker's channel."""

    def __init__(self, environment: dict[str, str], sandbox: Path, root: Path) -> None:
        self._root = root
        self._connection, theirs = socket.socketpair()
        self._channel = BlockingChannel(self._connection, "extension", CHILDREN)
        self._asked = 0
        with theirs:
            program = [sys.executable, "-m", "tests.mac.confined_worker", str(theirs.fileno()), str(sandbox)]
            self.worker = subprocess.Popen(program, env=environment, pass_fds=[theirs.fileno()])

    def ask(
        self, command: Command, parameters: Message, kind: type[Answer], descriptor: int | None = None
    ) -> Answer:
        """The worker's answer; earlier events are skipped."""
        self._asked += 1
        frame = request_frame(
            self._asked, "extension", command, parameters, descriptor=descriptor is not None
        )
        send_some(self._connection, frame, descriptor)
        while not isinstance(item := self._channel.receive(timeout=PATIENCE), Response):
            assert item is not None, "the worker has exited"
        return read_result(item, kind)

    def claim(self, device: Device, *, sandbox: Sandbox = "auto", confined: bool = True) -> ClaimResult:
        bus, address = device.busid
        order = Confinement(
            run_as=RunAs(user=str(UID), uid=UID, gid=UID), root=str(self._root), sandbox=sandbox
        )
        self._page, descriptor = counter_page()
        parameters = ClaimParameters(
            busid="20-2",
            path="",
            busnum=bus,
            devnum=address,
            simulated=None,
            confinement=order if confined else None,
            transfer_budget=_pump.SMALLEST_BUDGET,
            device_memory="auto",
            log_level="debug",
            log_to="stderr",
        )
        with os.fdopen(descriptor):
            return self.ask(Command.CLAIM, parameters, ClaimResult, descriptor)

    def attach(self) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
            theirs, _address = listener.accept()
        with theirs:
            self.ask(Command.ATTACH, AttachParameters(client="a client"), Nothing, theirs.fileno())
        return client

    def uids(self) -> set[int]:
        return set(psutil.Process(self.worker.pid).uids())

    def close(self) -> None:
        self._channel.close()
        assert self.worker.wait(PATIENCE) in (0, 1)


Start = Callable[..., Extension]


@pytest.fixture
def start(environment: dict[str, str], sandbox: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker; `changes` modify its environment."""
    started: list[Extension] = []
    root = tmp_path / "empty"
    root.mkdir()
    tmp_path.chmod(0o755)

    def start(**changes: str) -> Extension:
        started.append(Extension(environment | changes, sandbox, root))
        return started[-1]

    yield start
    for extension in started:
        extension.close()


@pytest.fixture
def device(kernel: OwnMac) -> Device:
    return kernel.plug("loopback", drivers={0: "hid"})


def control(client: socket.socket, devid: int, setup: str) -> int:
    """The status of one control transfer without data."""
    raw = bytes.fromhex(setup)
    urb = Submit(
        seqnum=1,
        devid=devid,
        direction=0,
        ep=0,
        transfer_flags=0,
        transfer_buffer_length=0,
        number_of_packets=0xFFFFFFFF,
        setup=raw,
        data=b"",
        iso=(),
    )
    client.sendall(encode(urb))
    reader = ReplyReader()
    reader.expect(urb)
    found: list[Reply] = []
    while not found:
        found += reader.feed(client.recv(4096))
    [reply] = found
    assert isinstance(reply, RetSubmit)
    return reply.status


def test_a_confined_worker_serves_and_releases_its_device(start: Start, device: Device) -> None:
    extension = start()
    result = extension.claim(device)
    assert (result.user, result.lacks) == (str(UID), None)
    assert extension.uids() == {UID}
    assert device.captured
    with extension.attach() as client:
        assert (
            control(client, result.device.devid, "00 09 02 00 00 00 00 00") == 0
        )  # SET_CONFIGURATION 2: IOKit reopens it
        assert device.configuration == 2
    extension.ask(Command.RELEASE, Nothing(), Nothing)
    assert extension.worker.wait(PATIENCE) == 0
    device.until("captured", False)
    device.until("drivers", [0])


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_mac_where_only_root_can_open_a_device(start: Start, device: Device, mode: Sandbox) -> None:
    """It is detected before a client attaches, and a worker that stays root works."""
    device.mac.switch(open_needs_root=True)
    extension = start()
    with pytest.raises(UsbipdError, match="the confined worker cannot claim its device again") as caught:
        extension.claim(device, sandbox=mode)
    assert caught.value.code == USELESS_WHEN_CONFINED
    assert 'confine = "off"' in str(caught.value.advice)
    assert extension.worker.wait(PATIENCE) == 1
    device.until("captured", False)
    device.until("drivers", [0])
    assert start().claim(device, confined=False).user == "root"


def test_a_mac_that_refuses_the_profile(start: Start, device: Device) -> None:
    extension = start(SANDBOX_REFUSES="1")
    result = extension.claim(device)
    assert result.user == str(UID)
    assert result.lacks == "this Mac refuses the Seatbelt profile: sandbox_init: profile refused"
    refused = start(SANDBOX_REFUSES="1")
    extension.ask(Command.RELEASE, Nothing(), Nothing)
    device.until("drivers", [0])
    with pytest.raises(UsbipdError, match="cannot be confined as required: this Mac refuses") as caught:
        refused.claim(device, sandbox="require")
    assert caught.value.code == "not-confined"
    assert refused.worker.wait(PATIENCE) == 1
    device.until("captured", False)


def test_a_mac_where_only_root_can_release_a_device(start: Start, device: Device) -> None:
    """The extension, which is root, then releases it."""
    extension = start()
    extension.claim(device)
    device.mac.call("fail", "RE_ENUMERATE", errors.NOT_PRIVILEGED, 1)
    with pytest.raises(UsbipdError, match="the kernel driver could not be reattached") as caught:
        extension.ask(Command.RELEASE, Nothing(), Nothing)
    assert caught.value.code == "release-failed"
    assert extension.worker.wait(PATIENCE) == 0
