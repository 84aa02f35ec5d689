"""A pump on a table: its client's socket and the extension's channel are in the test's hands, on one thread.

`Rig.turn` lets the pump take what was written to it and returns when it has nothing more to do: the test
pokes the channel, which the pump reports after a whole round.
"""

import mmap
import socket
import time
from collections.abc import Sequence

from tests.urb import Command, IsoPacket, Reply, ReplyReader, RetSubmit, Submit, Unlink, encode
from usbipd import _pump
from usbipd.counters import COUNTER_PAGE_SIZE, read_counters
from usbipd.ipc.control_messages import Counters
from usbipd.protocol.constants import LINUX_ECONNRESET, Speed
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import Behaviour, Handshake, SimulatedDevice
from usbipd.usb.descriptors import Configuration, parse_configuration

DEVID = 0x00F00002
OUT, IN = 0, 1
MODEL_OUT, MODEL_IN, INTERRUPT_IN, SOURCE, SINK, LOOP_OUT, LOOP_IN = 0x01, 0x81, 0x82, 0x83, 0x03, 0x04, 0x84
ISO_OUT, ISO_IN = 0x05, 0x85
CONTROL, ISOCHRONOUS, BULK, INTERRUPT = range(4)
GET_DEVICE_DESCRIPTOR = "80 06 0001 0000 1200"


class ScriptedDevice(SimulatedDevice):
    """Does what the test puts into its queues, and remembers what it was asked."""

    name = "scripted"
    product = "Scripted device"
    speed = Speed.HIGH
    device_descriptor = device_descriptor(0x01FF, bcdUSB=0x0200)
    configurations: tuple[bytes, ...] = (
        configuration_descriptor(
            interface_descriptor(0, 7, 0xFF),
            endpoint_descriptor(MODEL_OUT, BULK, 512, 0),
            endpoint_descriptor(MODEL_IN, BULK, 512, 0),
            endpoint_descriptor(INTERRUPT_IN, INTERRUPT, 64, 4),
            endpoint_descriptor(SOURCE, BULK, 512, 0),
            endpoint_descriptor(SINK, BULK, 512, 0),
            endpoint_descriptor(LOOP_OUT, BULK, 512, 0),
            endpoint_descriptor(LOOP_IN, BULK, 512, 0),
            interface_descriptor(1, 0, 0xFF),
            interface_descriptor(1, 2, 0xFF, bAlternateSetting=1),
            endpoint_descriptor(ISO_OUT, ISOCHRONOUS, 1024, 1),
            endpoint_descriptor(ISO_IN, ISOCHRONOUS, 1024, 1),
        ),
    )
    behaviours = {  # noqa: RUF012
        SOURCE: Behaviour.SOURCE,
        SINK: Behaviour.SINK,
        LOOP_OUT: Behaviour.LOOPBACK,
        LOOP_IN: Behaviour.LOOPBACK,
    }

    def __init__(self) -> None:
        super().__init__({})
        self.to_read: dict[int, list[bytes | Handshake | Exception]] = {}
        self.written: list[tuple[int, bytes]] = []
        self.accepts: list[int | Handshake] = []
        self.requests: list[tuple[bytes, bytes]] = []
        self.control_data: bytes | Handshake = Handshake.STALL
        self.iso_packets: list[bytes | Exception] = []
        self.iso_written: list[bytes] = []
        self.resets = 0
        self.reset_error: Exception | None = None
        self.cleared: list[int] = []

    def control_in(self, setup: bytes, length: int) -> bytes | Handshake:
        self.requests.append((setup, b""))
        return self.control_data

    def control_out(self, setup: bytes, data: memoryview) -> Handshake | None:
        self.requests.append((setup, bytes(data)))
        return None

    def read(self, endpoint: int, length: int) -> bytes | Handshake:
        queue = self.to_read.get(endpoint)
        if not queue:
            return Handshake.NAK
        answer = queue.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def write(self, endpoint: int, data: memoryview) -> int | Handshake:
        answer = self.accepts.pop(0) if self.accepts else len(data)
        if isinstance(answer, int):
            self.written.append((endpoint, bytes(data[:answer])))
        return answer

    def iso_read(self, endpoint: int, length: int) -> bytes:
        packet = self.iso_packets.pop(0) if self.iso_packets else b""
        if isinstance(packet, Exception):
            raise packet
        return packet

    def iso_write(self, endpoint: int, data: memoryview) -> None:
        self.iso_written.append(bytes(data))

    def wake_at(self) -> float | None:
        return time.monotonic() if any(self.to_read.values()) else None

    def reset(self) -> None:
        if self.reset_error is not None:
            raise self.reset_error
        self.resets += 1

    def halt_cleared(self, endpoint: int) -> None:
        self.cleared.append(endpoint)


class Rig:
    """The pump of a `ScriptedDevice` with one client attached."""

    def __init__(
        self,
        device: ScriptedDevice | None = None,
        *,
        devid: int = DEVID,
        budget: int = _pump.SMALLEST_BUDGET,
        as_on_macos: bool = False,
    ) -> None:
        self.device = device or ScriptedDevice()
        configurations = [parse_configuration(raw) for raw in self.device.configurations]
        self._start(
            _pump.SimulatedTransfers(self.device, as_on_macos=as_on_macos),
            configurations,
            configurations[0].bConfigurationValue,
            devid=devid,
            budget=budget,
        )

    def _start(
        self,
        transfers: _pump.Transfers,
        configurations: Sequence[Configuration],
        configuration: int,
        *,
        devid: int = DEVID,
        budget: int = _pump.SMALLEST_BUDGET,
    ) -> None:
        self.page = mmap.mmap(-1, COUNTER_PAGE_SIZE)
        self._pumps_channel, self._channel = socket.socketpair()
        self.transfers = transfers
        self.pump = _pump.Pump(
            transfers,
            configurations=configurations,
            configuration=configuration,
            devid=devid,
            channel=self._pumps_channel.fileno(),
            counters=self.page,
            budget=budget,
        )
        self.seqnum = 0
        self.attach()

    def attach(self) -> None:
        """A new client: what the test writes and reads from now on."""
        self._pumps_client, self.client = socket.socketpair()
        self.client.setblocking(False)
        self.replies = ReplyReader()
        self.pump.attach(self._pumps_client.fileno())

    def finish(self) -> bool:
        """The worker's end of a session."""
        drained = self.pump.finish()
        self._pumps_client.close()
        self.client.close()
        return drained

    def close(self) -> None:
        """No descriptor stays open."""
        del self.pump
        for each in (self._pumps_client, self.client, self._pumps_channel, self._channel):
            each.close()

    @property
    def counters(self) -> Counters:
        return read_counters(self.page)

    def turn(self) -> int:
        """Runs the pump until it would sleep, or ends the session; why it came back."""
        self._channel.send(b"!")
        wake = self.pump.run()
        self._pumps_channel.recv(1)
        return wake

    def send(self, data: bytes) -> int:
        """Bytes from the client, as many a turn as its socket takes; why the pump came back last."""
        rest = memoryview(data)
        while True:
            rest = rest[self.client.send(rest) :]
            wake = self.turn()
            if not rest or wake != _pump.CHANNEL:
                return wake

    def received(self) -> list[Reply]:
        """The replies that have reached the client."""
        found: list[Reply] = []
        while True:
            try:
                data = self.client.recv(1 << 20)
            except BlockingIOError:
                return found
            if not data:
                return found
            found += self.replies.feed(data)

    def awaited(self) -> list[Reply]:
        """Replies that take the time of a service interval or two; fails after five seconds."""
        end = time.monotonic() + 5
        while not (replies := self.received()):
            assert time.monotonic() < end, "no reply in five seconds"
            self.turn()
        return replies

    def submit(
        self,
        endpoint: int,
        length: int = 0,
        data: bytes = b"",
        *,
        setup: bytes = bytes(8),
        flags: int = 0,
        packets: Sequence[tuple[int, int]] = (),
        number_of_packets: int | None = None,
    ) -> Submit:
        """A CMD_SUBMIT with the next seqnum; `endpoint` with 0x80 for IN, `packets` are (offset, length)."""
        self.seqnum += 1
        direction = IN if endpoint & 0x80 else OUT
        iso = tuple(IsoPacket(*packet) for packet in packets)
        count = len(iso) if iso else 0xFFFFFFFF
        submit = Submit(
            seqnum=self.seqnum,
            devid=DEVID,
            direction=direction,
            ep=endpoint & 0x0F,
            transfer_flags=flags,
            transfer_buffer_length=length or len(data),
            number_of_packets=count if number_of_packets is None else number_of_packets,
            setup=setup,
            data=data,
            iso=iso,
        )
        self.replies.expect(submit)
        return submit

    def unlink(self, target: Submit) -> Unlink:
        """A CMD_UNLINK; ep and direction are 0 as Linux sends them."""
        self.seqnum += 1
        unlink = Unlink(seqnum=self.seqnum, devid=DEVID, direction=0, ep=0, unlink_seqnum=target.seqnum)
        self.replies.expect(unlink)
        return unlink

    def exchange(self, *commands: Command) -> list[Reply]:
        """Sends all in one write; the replies that come without further ado."""
        self.send(b"".join(encode(command) for command in commands))
        return self.received()

    def control(self, setup: str, data: bytes = b"", length: int | None = None) -> Reply:
        """One control transfer; `setup` in hexadecimal."""
        raw = bytes.fromhex(setup)
        wanted = int.from_bytes(raw[6:8], "little") if length is None else length
        [reply] = self.exchange(self.submit(raw[0] & 0x80, wanted, data, setup=raw))
        return reply


def statuses(replies: Sequence[Reply]) -> list[tuple[int, int]]:
    """By seqnum, how each ended."""
    return [(reply.seqnum, reply.status) for reply in replies]


def show_that_the_host_counts(rig: Rig) -> None:
    """Unlinks an URB of which the device has taken a part, so that an aborted one reports bytes."""
    rig.device.accepts = [512, Handshake.NAK]
    urb = rig.submit(MODEL_OUT, data=bytes(1024))
    assert rig.exchange(urb) == []
    rig.device.accepts = []
    said, done = rig.exchange(rig.unlink(urb))
    assert isinstance(said, RetSubmit)
    assert (said.status, said.actual_length, done.status) == (-LINUX_ECONNRESET, 512, 0)
    rig.device.written.clear()
