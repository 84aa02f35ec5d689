"""Clients of a daemon of a Mac: each transfer type, UNLINK, and requests that change the device."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.client import Session, TransferError
from tests.mac.build import build
from tests.mac.daemons.conftest import VARIANTS, started
from tests.mac.daemons.daemon import BULK_IN, BULK_OUT, PACKET, MacDaemon, echo
from tests.mac.mac import Device, OwnMac
from tests.mac.machine import Machine
from tests.urb import RetSubmit
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EILSEQ,
    LINUX_EPIPE,
    URB_ISO_ASAP,
    USB_FEATURE_ENDPOINT_HALT,
    USB_RECIP_ENDPOINT,
    USB_RECIP_INTERFACE,
    USB_REQ_CLEAR_FEATURE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_SET_CONFIGURATION,
    USB_REQ_SET_INTERFACE,
)

INTERRUPT_IN, ISO_OUT, ISO_IN = 0x82, 0x03, 0x83
BUSID = "20-2"
ISO_PACKET = 192
VENDOR_IN, VENDOR_OUT = 0xC0, 0x40
DESCRIPTOR = (0x80, USB_REQ_GET_DESCRIPTOR, 0x0100)


@dataclass(frozen=True)
class Shared:
    """A shared device for all tests here: each test is a new session."""

    daemon: MacDaemon
    device: Device


@pytest.fixture(scope="module", params=VARIANTS)
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """With each libusb."""
    with OwnMac() as kernel, started(Machine(kernel, build(request.param))) as start:
        daemon = start()
        gadget = daemon.machine.plug(2)
        daemon.bind(BUSID)
        yield Shared(daemon, gadget.device)
        daemon.stop()


@pytest.fixture
def device(shared: Shared) -> Device:
    return shared.device


@pytest.fixture
def session(shared: Shared) -> Iterator[Session]:
    with shared.daemon.attach(BUSID) as session:
        yield session


# ---- transfers ---------------------------------------------------------------------------------------------


def test_control_transfers(session: Session) -> None:
    assert session.control_in(*DESCRIPTOR, length=18)[:2] == b"\x12\x01"
    assert session.control_in(VENDOR_IN, 0x41, length=65535) == b"A" * 65535
    assert session.control_out(VENDOR_OUT, 0x42, data=b"x" * 4096) == 4096
    with pytest.raises(TransferError) as stalled:
        session.control_in(0x81, 0x09, length=4)
    assert stalled.value.status == -LINUX_EPIPE
    assert session.control_in(*DESCRIPTOR, length=18)[:2] == b"\x12\x01", (
        "a stall of endpoint 0 clears itself"
    )


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096, 16384])
def test_bulk_transfers(session: Session, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert session.bulk_out(BULK_OUT, data) == size
    is_whole = size > 0 and size % PACKET == 0
    assert session.bulk_in(BULK_IN, size if is_whole else size + PACKET) == data


def test_interrupt_transfers(device: Device, session: Session) -> None:
    reports = [bytes([number] * 8) for number in range(10)]
    waiting = [session.submit(INTERRUPT_IN, length=8, interval=4) for _report in reports]
    for report in reports:
        device.give(INTERRUPT_IN, report)
    assert [session.wait_submit(each).data for each in waiting] == reports


def test_isochronous_transfers(device: Device, session: Session) -> None:
    set_interface(session, 1)
    packets = [bytes([number]) * (ISO_PACKET - number) for number in range(8)]
    device.give_packets(ISO_IN, *packets)
    reply = session.iso_in(ISO_IN, [ISO_PACKET] * 8)
    assert [packet.actual_length for packet in reply.iso] == list(map(len, packets))
    assert reply.data == b"".join(packets)
    out = session.submit(
        ISO_OUT, data=b"iso out " * ISO_PACKET, iso=[ISO_PACKET] * 8, transfer_flags=URB_ISO_ASAP
    )
    reply = session.wait_submit(out)
    assert reply.status == 0
    assert [packet.actual_length for packet in reply.iso] == [ISO_PACKET] * 8
    assert device.taken(ISO_OUT) == b"iso out " * ISO_PACKET


# ---- UNLINK ------------------------------------------------------------------------------------------------


class Reader:
    """Keeps transfers pending on an IN endpoint, unlinks some, and records the data of the others."""

    def __init__(self, session: Session) -> None:
        self.got: list[bytes] = []
        self._session = session
        self._pending: list[int] = []
        self._unlinks: dict[int, int] = {}
        """Unlinked seqnums, by the seqnum of CMD_UNLINK."""

    def submit(self) -> None:
        while len(self._pending) < 16:
            self._pending.append(self._session.submit(BULK_IN, length=PACKET))

    def unlink(self, choice: random.Random) -> None:
        for victim in choice.sample(self._pending, choice.randint(0, 8)):
            self._unlinks[self._session.send_unlink(victim)] = victim
        while self._unlinks:
            self.receive()

    def receive(self) -> None:
        """Processes everything that arrived before the answer to a control request."""
        self._session.control_in(*DESCRIPTOR, length=18)
        replies = list(self._session.replies.items())
        self._session.replies.clear()
        for seqnum, reply in replies:
            if isinstance(reply, RetSubmit):
                self._pending.remove(seqnum)
                assert reply.status in (0, -LINUX_EILSEQ)
                self.got += [reply.data] if reply.status == 0 else []
            else:
                victim = self._unlinks.pop(seqnum)
                assert reply.status == (-LINUX_ECONNRESET if victim in self._pending else 0)
                if victim in self._pending:
                    self._pending.remove(victim)


def test_unlink_storm_in(device: Device, session: Session) -> None:
    """Each packet ends a transfer, so all packets arrive once and in order, whatever is unlinked."""
    choice = random.Random(1)
    reader = Reader(session)
    given = 0
    for _round in range(60):
        reader.submit()
        for _packet in range(choice.randint(0, 4)):
            device.give(BULK_IN, b"%4d" % given + bytes(96))
            given += 1
        reader.unlink(choice)
    while len(reader.got) < given:
        reader.submit()
        reader.receive()
    assert [int(data[:4]) for data in reader.got] == list(range(given))


def test_unlink_storm_out(device: Device, session: Session) -> None:
    """Successful transfers arrive once, unlinked or unknown ones at most once; all in order."""
    choice = random.Random(2)
    sent, arrived = 0, []
    unknown: set[int] = set()
    for _round in range(30):
        device.credit(BULK_OUT, choice.randint(0, 6))
        pending = {}
        for _urb in range(8):
            pending[session.submit(BULK_OUT, data=b"%4d" % sent + bytes(96))] = sent
            sent += 1
        unlinks = {session.send_unlink(victim): victim for victim in choice.sample(list(pending), 4)}
        for unlink, victim in unlinks.items():
            if session.wait(unlink).status == -LINUX_ECONNRESET:
                unknown.add(pending.pop(victim))
        device.credit(BULK_OUT, None)
        for seqnum, number in pending.items():
            status = session.wait_submit(seqnum).status
            assert status in (0, -LINUX_EILSEQ)
            unknown |= {number} if status else set()
        session.bulk_out(BULK_OUT, b"end")
        while (data := session.bulk_in(BULK_IN, PACKET)) != b"end":
            arrived.append(int(data[:4]))
    assert arrived == sorted(set(arrived)), "a transfer arrived twice or too late"
    assert set(range(sent)) - unknown <= set(arrived)


# ---- requests that the host's stack executes ---------------------------------------------------------------


def set_interface(session: Session, setting: int) -> None:
    session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, setting, 0)


def test_settings_of_an_interface(shared: Shared) -> None:
    with shared.daemon.attach(BUSID) as session:
        for _turn in range(3):
            set_interface(session, 1)
            session.iso_in(ISO_IN, [ISO_PACKET])
            echo(session)
            set_interface(session, 0)
            echo(session)
        with pytest.raises(TransferError):
            set_interface(session, 7)
        echo(session)
        set_interface(session, 1)
    with shared.daemon.attach(BUSID) as session:
        echo(session)


def test_configurations(shared: Shared) -> None:
    with shared.daemon.attach(BUSID) as session:
        session.control_out(0, USB_REQ_SET_CONFIGURATION, 1)
        echo(session)
        waiting = session.submit(BULK_IN, length=PACKET)
        session.control_out(0, USB_REQ_SET_CONFIGURATION, 0)
        assert session.wait_submit(waiting).status != 0
        with pytest.raises(TransferError):
            session.bulk_in(BULK_IN, PACKET)
        session.control_out(0, USB_REQ_SET_CONFIGURATION, 1)
        echo(session)
        session.control_out(0, USB_REQ_SET_CONFIGURATION, 0)
    with shared.daemon.attach(BUSID) as session:
        echo(session)


def test_clear_halt_does_not_affect_other_transfers(device: Device, session: Session) -> None:
    """macOS ends all transfers of the endpoint, Linux none.  Only the first may have an unknown end."""
    waiting = [session.submit(BULK_IN, length=PACKET) for _urb in range(3)]
    session.control_out(USB_RECIP_ENDPOINT, USB_REQ_CLEAR_FEATURE, USB_FEATURE_ENDPOINT_HALT, BULK_IN)
    if waiting[0] in session.replies:
        assert session.wait_submit(waiting.pop(0)).status == -LINUX_EILSEQ
    numbers = [bytes([number]) * 100 for number in range(len(waiting))]
    for number in numbers:
        device.give(BULK_IN, number)
    assert [session.wait_submit(each).data for each in waiting] == numbers
