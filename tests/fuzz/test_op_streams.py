"""Hostile clients of the server, over real TCP, with a fake extension behind it.

Invariant: whatever bytes a client sends, cut anywhere, with trailing bytes, half-closed or reset in the
middle, it gets the reply that its request deserves and that `usbipd.protocol.op` accepts, or its connection
is closed without a byte.  Other clients get their answers meanwhile, nothing is read that belongs to a
worker, and when all have left no session, no reservation and no descriptor is left.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, multiple, rule

from tests.unit.server.rig import DEVICE, PATIENCE, serving
from usbipd.errors import ProtocolError
from usbipd.ipc.messages import Command
from usbipd.protocol.constants import ST_DEV_BUSY, ST_NODEV, ST_OK
from usbipd.protocol.op import (
    DevlistReplyReader,
    DevlistRequest,
    ImportReplyReader,
    ImportRequest,
    MalformedImport,
    Request,
    RequestReader,
    encode_devlist_request,
    encode_import_request,
)

MOST = 40
"""Connections that the server allows at once."""

VALID = [encode_devlist_request(), encode_import_request(DEVICE.busid), encode_import_request("9-9.9")]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A request with one byte changed."""
    request = bytearray(draw(st.sampled_from(VALID)))
    request[draw(st.integers(0, len(request) - 1))] = draw(st.integers(0, 255))
    return bytes(request)


STREAMS = st.sampled_from(VALID) | mutated() | st.binary(max_size=64)


@dataclass(eq=False)
class HostileClient:
    """A connection, and the state that a server must have reached that reads only the request."""

    connection: socket.socket
    left: bytes
    """Bytes of its stream that it has not sent."""
    reader: RequestReader = field(default_factory=RequestReader)
    request: Request | None = None
    refused: bool = False
    behind: bytes = b""
    """Bytes after the request, which are not for the server."""
    may_be_displaced: bool = False

    def send(self, size: int) -> None:
        part, self.left = self.left[:size], self.left[size:]
        with contextlib.suppress(ConnectionError):
            self.connection.sendall(part)
        while part and not self.refused and self.request is None:
            wanted, part = part[: self.reader.wanted], part[self.reader.wanted :]
            try:
                self.request = self.reader.feed(wanted)
            except ProtocolError:
                self.refused = True
        self.behind += part

    @property
    def decided(self) -> bool:
        return self.refused or self.request is not None


class OpStreams(RuleBasedStateMachine):
    """One server, any number of clients at once."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.open_at_first = descriptors()
        self.runner = asyncio.Runner()
        self.problems: list[dict[str, Any]] = []
        self.runner.get_loop().set_exception_handler(lambda _loop, context: self.problems.append(context))
        self.serving = serving(total=MOST, per_address=MOST)
        self.server = self.runner.run(self.serving.__aenter__())
        self.open: list[HostileClient] = []

    @initialize(busy=st.booleans())
    def device(self, busy: bool) -> None:
        self.server.extension.status = ST_DEV_BUSY if busy else ST_OK

    def teardown(self) -> None:
        try:
            for client in self.open:
                client.connection.close()
            self.wait_until(lambda: not self.server.coordinator._connections._sessions)
            self.check_others()
            self.wait_until(lambda: not self.server.coordinator._connections._sessions)
            asked = self.server.extension.commands
            assert asked.count(Command.ABANDON) == 0, "a reservation was given up without need"
            self.runner.run(self.serving.__aexit__(None, None, None))
        finally:
            self.runner.close()
        assert not self.problems
        assert descriptors() == self.open_at_first

    # ---- acts of clients -------------------------------------------------------------------------

    @rule(target=clients, stream=STREAMS, more=STREAMS)
    def connect(self, stream: bytes, more: bytes) -> HostileClient:
        return self.connected(stream + more)

    @rule(target=clients, number=st.integers(1, MOST + 5))
    def flood(self, number: int) -> Any:
        """Idle connections; clients with an incomplete request may be displaced."""
        for client in self.open:
            client.may_be_displaced = True
        newest = [self.connected(b"") for _ in range(number)]
        for client in newest:
            client.may_be_displaced = True
        self.check_others()
        return multiple(*newest[-2:])

    @rule(client=clients, size=st.integers(1, 100))
    def send(self, client: HostileClient, size: int) -> None:
        if client in self.open:
            client.send(size)
            self.settle(client)

    @rule(client=consumes(clients))
    def half_close(self, client: HostileClient) -> None:
        """It closes its half and keeps reading."""
        if client in self.open:
            with contextlib.suppress(OSError):
                client.connection.shutdown(socket.SHUT_WR)
            assert self.all_from(client) == b""
            self.leave(client)

    @rule(client=consumes(clients), reset=st.booleans())
    def close(self, client: HostileClient, reset: bool) -> None:
        if client in self.open:
            if reset:
                client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.leave(client)

    @rule()
    def check_others(self) -> None:
        """Another client is served at once."""
        other = self.connected(encode_devlist_request())
        other.send(100)
        self.settle(other)

    # ---- duties of the server --------------------------------------------------------------------

    def settle(self, client: HostileClient) -> None:
        """Takes the answer, once the client has sent a request."""
        if not client.decided:
            return
        request = client.request
        imports = request == ImportRequest(DEVICE.busid) and self.server.extension.status == ST_OK
        if imports:
            self.take_over(client)
        else:
            answer = self.all_from(client)
            if answer or not (client.may_be_displaced or client.behind or client.left):
                self.check_answer(request, answer)
        self.leave(client)

    def check_answer(self, request: Request | None, answer: bytes) -> None:
        if request is None:
            assert answer == b""
        elif isinstance(request, DevlistRequest):
            devlist = DevlistReplyReader()
            reply = devlist.feed(answer)
            assert reply is not None
            assert (reply.devices, devlist.trailing) == ((DEVICE,), b"")
        else:
            status = ST_NODEV
            if isinstance(request, ImportRequest) and request.busid == DEVICE.busid:
                status = self.server.extension.status
            importing = ImportReplyReader()
            answered = importing.feed(answer)
            assert answered is not None
            assert (answered.status, answered.device, importing.trailing) == (status, None, b"")
            assert not isinstance(request, MalformedImport) or status == ST_NODEV

    def take_over(self, client: HostileClient) -> None:
        """The extension has the connection and the bytes after the request."""
        extension = self.server.extension
        try:
            self.wait_until(lambda: extension.client is not None)
        except TimeoutError:
            assert client.may_be_displaced
            return
        handed, extension.client = extension.client, None
        assert handed is not None
        with handed:
            handed.setblocking(True)
            handed.settimeout(PATIENCE)
            assert (
                handed.recv(len(client.behind), socket.MSG_WAITALL) == client.behind
                if client.behind
                else True
            )
        answer = self.all_from(client)
        reader = ImportReplyReader()
        reply = reader.feed(answer)
        assert reply is not None
        assert (reply.status, reply.device, reader.trailing) == (ST_OK, DEVICE, b"")

    # ---- helpers ---------------------------------------------------------------------------------

    def connected(self, stream: bytes) -> HostileClient:
        connection = socket.create_connection(self.server.address)
        connection.setblocking(False)
        client = HostileClient(connection, stream)
        self.open.append(client)
        if len(self.open) > MOST:
            for each in self.open:
                each.may_be_displaced = True
        return client

    def leave(self, client: HostileClient) -> None:
        client.connection.close()
        self.open.remove(client)

    def all_from(self, client: HostileClient) -> bytes:
        """The bytes that the client gets until its connection ends, also by a reset."""

        async def read() -> bytes:
            received = b""
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        data = await asyncio.get_running_loop().sock_recv(client.connection, 65536)
                    except ConnectionError:
                        return received
                    if not data:
                        return received
                    received += data

        return self.runner.run(read())

    def wait_until(self, condition: Any) -> None:
        async def wait() -> None:
            async with asyncio.timeout(PATIENCE):
                while not condition():  # noqa: ASYNC110 - nothing signals it
                    await asyncio.sleep(0.0005)

        self.runner.run(wait())


def descriptors() -> int:
    """The number of descriptors that this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


TestOpStreams = OpStreams.TestCase
TestOpStreams.settings = settings(max_examples=max(25, settings().max_examples // 4), stateful_step_count=30)
