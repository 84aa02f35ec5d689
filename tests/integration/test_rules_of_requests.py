"""The rules of intercepted control requests and of isochronous transfers, over TCP on simulated devices."""

import itertools

import pytest

from tests.client import Session, TransferError
from tests.integration.conftest import Attach
from usbipd.protocol.constants import (
    LINUX_EPIPE,
    MAX_ISO_PACKETS,
    URB_SHORT_NOT_OK,
    USB_DT_DEVICE,
    USB_FEATURE_ENDPOINT_HALT,
    USB_FEATURE_PORT_RESET,
    USB_RECIP_DEVICE,
    USB_RECIP_ENDPOINT,
    USB_RECIP_INTERFACE,
    USB_RECIP_OTHER,
    USB_REQ_CLEAR_FEATURE,
    USB_REQ_GET_CONFIGURATION,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_GET_INTERFACE,
    USB_REQ_GET_STATUS,
    USB_REQ_SET_CONFIGURATION,
    USB_REQ_SET_FEATURE,
    USB_REQ_SET_INTERFACE,
    USB_TYPE_CLASS,
)
from usbipd.simulated.audio import Audio

SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x01, 0x82, 0x02
AUDIO_IN, AUDIO_PACKET, AUDIO_INTERFACE = 0x81, 192, 1
FROM_DEVICE, FROM_INTERFACE, FROM_ENDPOINT = 0x80, 0x81, 0x82


def select(session: Session, alternate: int) -> None:
    """SET_INTERFACE on the interface that streams audio."""
    session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, alternate, AUDIO_INTERFACE)


def selected(session: Session) -> int:
    """GET_INTERFACE on the same interface."""
    [alternate] = session.control_in(FROM_INTERFACE, USB_REQ_GET_INTERFACE, 0, AUDIO_INTERFACE, length=1)
    return alternate


@pytest.fixture
def audio(attach: Attach) -> Session:
    """The microphone, with its isochronous endpoint on."""
    session = attach("audio")
    select(session, 1)
    return session


# ---- intercepted requests ----


@pytest.mark.rule("set-interface")
def test_set_interface_switches_endpoints_on_and_off(attach: Attach) -> None:
    session = attach("audio")
    for _ in range(2):
        assert selected(session) == 0
        with pytest.raises(TransferError) as failed:
            session.bulk_in(AUDIO_IN, AUDIO_PACKET)
        assert failed.value.status == -LINUX_EPIPE
        select(session, 1)
        assert selected(session) == 1
        assert session.iso_in(AUDIO_IN, [AUDIO_PACKET] * 3).actual_length == 3 * AUDIO_PACKET
        select(session, 0)


@pytest.mark.rule("set-interface")
def test_an_alternate_setting_that_does_not_exist_is_a_stall(attach: Attach) -> None:
    session = attach("audio")
    for alternate, interface in [(2, AUDIO_INTERFACE), (0, 7)]:
        with pytest.raises(TransferError) as failed:
            session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, alternate, interface)
        assert failed.value.status == -LINUX_EPIPE
    assert selected(session) == 0


@pytest.mark.rule("set-configuration")
def test_set_configuration_removes_the_endpoints(attach: Attach) -> None:
    session = attach("loopback")

    def configuration() -> bytes:
        return session.control_in(FROM_DEVICE, USB_REQ_GET_CONFIGURATION, length=1)

    session.control_out(USB_RECIP_DEVICE, USB_REQ_SET_CONFIGURATION, 0)
    assert configuration() == b"\x00"
    with pytest.raises(TransferError) as failed:
        session.bulk_in(SOURCE_IN, 64)
    assert failed.value.status == -LINUX_EPIPE
    session.control_out(USB_RECIP_DEVICE, USB_REQ_SET_CONFIGURATION, 1)
    assert configuration() == b"\x01"
    assert len(session.bulk_in(SOURCE_IN, 64)) == 64


@pytest.mark.rule("set-configuration")
def test_set_configuration_resets_the_alternate_settings(audio: Session) -> None:
    audio.control_out(USB_RECIP_DEVICE, USB_REQ_SET_CONFIGURATION, 1)
    assert selected(audio) == 0


@pytest.mark.rule("clear-halt")
@pytest.mark.rule("linux-errno")
@pytest.mark.parametrize("endpoint", [SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT])
def test_a_halted_endpoint_works_after_clear_halt(attach: Attach, endpoint: int) -> None:
    session = attach("loopback")

    def halted() -> bool:
        status = session.control_in(FROM_ENDPOINT, USB_REQ_GET_STATUS, 0, endpoint, length=2)
        return bool(status[0] & 1)

    def use() -> int:
        length = None if endpoint in (SINK_OUT, LOOPBACK_OUT) else 4
        if endpoint == LOOPBACK_IN:
            session.bulk_out(LOOPBACK_OUT, b"data")
        seqnum = session.submit(endpoint, data=b"data" if length is None else b"", length=length)
        return session.wait_submit(seqnum).status

    assert use() == 0
    assert not halted()
    session.control_out(USB_RECIP_ENDPOINT, USB_REQ_SET_FEATURE, USB_FEATURE_ENDPOINT_HALT, endpoint)
    assert halted()
    for _ in range(2):
        assert use() == -LINUX_EPIPE == -32
    session.control_out(USB_RECIP_ENDPOINT, USB_REQ_CLEAR_FEATURE, USB_FEATURE_ENDPOINT_HALT, endpoint)
    assert not halted()
    assert use() == 0


@pytest.mark.rule("port-reset")
def test_port_reset_is_answered_and_resets_the_device(attach: Attach) -> None:
    session = attach("loopback")
    session.bulk_out(LOOPBACK_OUT, b"before the reset")
    session.control_out(USB_TYPE_CLASS | USB_RECIP_OTHER, USB_REQ_SET_FEATURE, USB_FEATURE_PORT_RESET, 1)
    session.bulk_out(LOOPBACK_OUT, b"after it")
    assert session.bulk_in(LOOPBACK_IN, 64) == b"after it"


# ---- isochronous transfers ----


@pytest.mark.rule("iso-compacted")
@pytest.mark.rule("iso-descriptors-kept")
@pytest.mark.rule("iso-descriptors-last")
@pytest.mark.rule("iso-sum")
def test_isochronous_in_is_sent_without_gaps(audio: Session) -> None:
    """The microphone fills 192 bytes of each packet, however large it is."""
    model = Audio({})
    room = [AUDIO_PACKET + extra for extra in (8, 0, 100, 1, 0)]
    reply = audio.iso_in(AUDIO_IN, room)
    assert reply.actual_length == len(room) * AUDIO_PACKET == len(reply.data)
    assert [packet.actual_length for packet in reply.iso] == [AUDIO_PACKET] * len(room)
    assert [packet.offset for packet in reply.iso] == [sum(room[:index]) for index in range(len(room))]
    assert [packet.length for packet in reply.iso] == room
    assert reply.packets() == tuple(bytes(model.iso_read(AUDIO_IN, AUDIO_PACKET)) for _ in room)


@pytest.mark.rule("iso-error-count")
@pytest.mark.rule("iso-start-frame")
def test_isochronous_transfers_follow_each_other_frame_by_frame(audio: Session) -> None:
    pending = [audio.submit(AUDIO_IN, iso=[AUDIO_PACKET] * 8) for _ in range(4)]
    replies = [audio.wait_submit(seqnum) for seqnum in pending]
    assert [reply.error_count for reply in replies] == [0] * 4
    starts = [reply.start_frame for reply in replies]
    assert [later - earlier for earlier, later in itertools.pairwise(starts)] == [8] * 3


@pytest.mark.rule("iso-limit")
def test_1024_packets_are_possible(audio: Session) -> None:
    reply = audio.iso_in(AUDIO_IN, [AUDIO_PACKET] * MAX_ISO_PACKETS)
    assert reply.actual_length == MAX_ISO_PACKETS * AUDIO_PACKET
    assert reply.number_of_packets == MAX_ISO_PACKETS


@pytest.mark.rule("flags-masked")
def test_short_not_ok_does_not_apply_to_isochronous_packets(audio: Session) -> None:
    room = [AUDIO_PACKET + 8] * 4
    reply = audio.wait_submit(audio.submit(AUDIO_IN, iso=room, transfer_flags=URB_SHORT_NOT_OK))
    assert (reply.status, reply.actual_length) == (0, 4 * AUDIO_PACKET)


@pytest.mark.rule("unlink-pending")
@pytest.mark.rule("endpoints-independent")
def test_an_isochronous_transfer_can_be_unlinked(audio: Session) -> None:
    pending = [audio.submit(AUDIO_IN, iso=[AUDIO_PACKET] * MAX_ISO_PACKETS) for _ in range(3)]
    assert len(audio.control_in(FROM_DEVICE, USB_REQ_GET_DESCRIPTOR, USB_DT_DEVICE << 8, length=18)) == 18
    for seqnum in reversed(pending):
        assert audio.unlink(seqnum) == -104
    assert audio.replies == {}
