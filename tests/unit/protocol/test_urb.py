"""The URB codec: golden vectors, round trips, bounds, hostile bytes."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import golden
from tests.golden.messages import COMMANDS, REPLIES, SUBMITS, UNLINK, is_isochronous
from tests.unit.protocol.chunks import STREAM
from tests.urb import (
    Command,
    CommandReader,
    IsoPacket,
    Reply,
    ReplyReader,
    RetSubmit,
    RetUnlink,
    Submit,
    Unlink,
    answer,
    answer_isochronous,
    encode,
)
from usbipd.errors import ProtocolError
from usbipd.protocol import constants
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EREMOTEIO,
    LINUX_EXDEV,
    MAX_ISO_PACKETS,
    MAX_TRANSFER_LENGTH,
    NO_ISO_PACKETS,
)

BULK_IN = SUBMITS["cmd_submit_bulk_in"]
BULK_OUT = SUBMITS["cmd_submit_bulk_out"]
ISO_IN = SUBMITS["cmd_submit_iso_in"]
ISO_OUT = SUBMITS["cmd_submit_iso_out"]

U32 = st.integers(0, 0xFFFFFFFF)


@st.composite
def submits(draw: st.DrawFn) -> Submit:
    """Any CMD_SUBMIT to an endpoint of the vectors' device."""
    ep, direction = draw(st.sampled_from([(0, 0), (0, 1), (10, 0), (11, 1), (12, 1), (13, 0), (14, 1)]))
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6)) if ep in (10, 11) else []
    iso = tuple(IsoPacket(sum(lengths[:index]), length) for index, length in enumerate(lengths))
    length = sum(lengths) if iso else draw(st.integers(0, 300))
    return Submit(
        seqnum=draw(U32),
        devid=draw(U32),
        direction=direction,
        ep=ep,
        transfer_flags=draw(U32),
        transfer_buffer_length=length,
        start_frame=draw(U32),
        number_of_packets=len(iso) if iso else draw(U32),
        interval=draw(U32),
        setup=draw(st.binary(min_size=8, max_size=8)),
        data=b"" if direction else draw(st.binary(min_size=length, max_size=length)),
        iso=iso,
    )


UNLINKS = st.builds(Unlink, U32, U32, st.just(0), st.just(0), U32)


def reader_expecting(command: Command, reply: Reply) -> ReplyReader:
    """A reader for the answer to `command`; an UNLINK that cancels has something to cancel."""
    reader = ReplyReader()
    if isinstance(reply, RetUnlink) and reply.status:
        reader.expect(BULK_IN)
    reader.expect(command)
    return reader


def test_every_vector_is_replayed() -> None:
    assert set(COMMANDS) == set(golden.names("cmd_"))
    assert set(REPLIES) == set(golden.names("ret_"))


@pytest.mark.rule("urb-framing")
@pytest.mark.rule("any-chunking")
@pytest.mark.rule("setup-little-endian")
@pytest.mark.rule("iso-descriptors-last")
@pytest.mark.parametrize("stream", STREAM)
@pytest.mark.parametrize("name", COMMANDS)
def test_command_vector_decodes(name: str, stream: Any) -> None:
    assert stream(CommandReader(is_isochronous), golden.load(name)) == [COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_encodes_as_the_vector(name: str) -> None:
    assert encode(COMMANDS[name]) == golden.load(name)


@pytest.mark.rule("urb-framing")
@pytest.mark.rule("any-chunking")
@pytest.mark.rule("ret-seqnum")
@pytest.mark.rule("iso-descriptors-last")
@pytest.mark.parametrize("stream", STREAM)
@pytest.mark.parametrize("name", REPLIES)
def test_reply_vector_decodes(name: str, stream: Any) -> None:
    command, reply = REPLIES[name]
    assert stream(reader_expecting(COMMANDS[command], reply), golden.load(name)) == [reply]


@pytest.mark.rule("ret-basic-zero")
@pytest.mark.parametrize("name", REPLIES)
def test_reply_encodes_as_the_vector(name: str) -> None:
    encoded = encode(REPLIES[name][1])
    assert encoded == golden.load(name)
    assert encoded[8:20] == bytes(12)


@pytest.mark.rule("any-chunking")
def test_all_command_vectors_in_one_stream() -> None:
    stream = b"".join(golden.load(name) for name in COMMANDS)
    assert CommandReader(is_isochronous).feed(stream) == list(COMMANDS.values())


@pytest.mark.rule("any-chunking")
@given(commands=st.lists(submits() | UNLINKS, max_size=5), cuts=st.lists(st.integers(0, 2000)))
def test_commands_round_trip_in_any_chunks(commands: list[Command], cuts: list[int]) -> None:
    stream = b"".join(map(encode, commands))
    edges = [0, *sorted(cuts), len(stream)]
    reader = CommandReader(is_isochronous)
    chunks = [stream[begin:end] for begin, end in pairwise(edges)]
    assert [message for chunk in chunks for message in reader.feed(chunk)] == commands


@pytest.mark.rule("actual-length-bounded")
@given(submit=submits(), data=st.data())
def test_answers_round_trip(submit: Submit, data: st.DataObject) -> None:
    buffer = bytes(range(256)) * 2
    if submit.iso:
        packet_results = [(data.draw(st.integers(0, packet.length)), 0) for packet in submit.iso]
        reply = answer_isochronous(submit, 7, packet_results, buffer)
    else:
        reply = answer(submit, 0, data.draw(st.integers(0, submit.transfer_buffer_length)), buffer)
    reader = ReplyReader()
    reader.expect(submit)
    assert reader.feed(encode(reply)) == [reply]


# ---- contents of a reply ----


@pytest.mark.rule("ret-data-in-only")
@pytest.mark.rule("ret-out-taken")
def test_out_reports_its_length_and_carries_no_data() -> None:
    assert encode(answer(BULK_OUT, 0, 6)) == golden.load("ret_submit_bulk_out")
    assert answer(BULK_OUT, 0, 4, b"abcdef") == RetSubmit(BULK_OUT.seqnum, 0, 4, number_of_packets=0)


@pytest.mark.rule("short-not-ok")
@pytest.mark.rule("bug-timeout-length")
def test_a_short_read_is_an_error_only_under_short_not_ok() -> None:
    assert encode(answer(BULK_IN, 0, 6, b"abcdef")) == golden.load("ret_submit_bulk_in_short")
    assert answer(BULK_IN, 0, 6, b"abcdef").status == -LINUX_EREMOTEIO
    assert answer(BULK_IN, 0, BULK_IN.transfer_buffer_length, bytes(0x205)).status == 0
    assert answer(BULK_OUT, 0, 4).status == 0


@pytest.mark.rule("packets-echoed")
@pytest.mark.parametrize("number_of_packets", [0, 0xFFFFFFFF, 0x35363738])
def test_number_of_packets_is_echoed(number_of_packets: int) -> None:
    submit = Submit(1, 2, 1, 12, 0x200, 8, number_of_packets=number_of_packets)
    assert answer(submit, 0, 2, b"ab").number_of_packets == number_of_packets


@pytest.mark.rule("iso-compacted")
@pytest.mark.rule("iso-descriptors-kept")
@pytest.mark.rule("iso-sum")
@pytest.mark.rule("iso-start-frame")
@pytest.mark.rule("iso-error-count")
def test_isochronous_in_is_compacted() -> None:
    buffer = b"abcdefg...--" + b"-" * 7 + b"\x81\x82\x83\x84" + b"....."
    reply = answer_isochronous(ISO_IN, 0x31323334, [(7, 0), (0, -LINUX_EXDEV), (4, 0)], buffer)
    assert encode(reply) == golden.load("ret_submit_iso_in")
    assert reply.packets() == (b"abcdefg", b"", b"\x81\x82\x83\x84")


@pytest.mark.rule("iso-sum")
def test_isochronous_out_reports_the_sum_too() -> None:
    reply = answer_isochronous(ISO_OUT, 0x31323334, [(3, 0), (4, 0)])
    assert encode(reply) == golden.load("ret_submit_iso_out")
    assert reply.actual_length == 7


# ---- the type of a transfer ----


@pytest.mark.rule("packets-by-endpoint")
@pytest.mark.rule("bug-type-from-interval")
@given(number_of_packets=U32, interval=U32)
def test_number_of_packets_and_interval_do_not_make_a_transfer_isochronous(
    number_of_packets: int, interval: int
) -> None:
    submit = Submit(1, 2, 0, 13, 0, 2, number_of_packets=number_of_packets, interval=interval, data=b"ab")
    assert CommandReader(is_isochronous).feed(encode(submit)) == [submit]


def test_a_transfer_to_a_missing_endpoint_is_framed_if_possible() -> None:
    for number_of_packets in (0, NO_ISO_PACKETS):
        submit = Submit(1, 2, 0, 9, 0, 2, number_of_packets=number_of_packets, data=b"ab")
        assert CommandReader(is_isochronous).feed(encode(submit)) == [submit]
    with pytest.raises(ProtocolError, match="no endpoint 9"):
        CommandReader(is_isochronous).feed(encode(Submit(1, 2, 0, 9, 0, 0, number_of_packets=1)))


@pytest.mark.rule("ep-number")
@pytest.mark.parametrize(("direction", "ep"), [(1, 0x81), (0, 16), (2, 1)])
def test_a_wrong_ep_or_direction_is_refused(direction: int, ep: int) -> None:
    with pytest.raises(ProtocolError, match="ep is 0 to 15"):
        CommandReader(is_isochronous).feed(encode(Submit(1, 2, direction, ep, 0, 0)))


# ---- bounds ----


@pytest.mark.rule("capped-lengths")
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("length", [MAX_TRANSFER_LENGTH + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_transfer_above_the_limit_is_refused(direction: int, length: int) -> None:
    with pytest.raises(ProtocolError, match=f"{length} is above {MAX_TRANSFER_LENGTH}"):
        CommandReader(is_isochronous).feed(encode(Submit(1, 2, direction, 14 - (not direction), 0, length)))


def test_a_transfer_at_the_limit_is_read() -> None:
    submit = Submit(1, 2, 1, 14, 0, MAX_TRANSFER_LENGTH)
    assert CommandReader(is_isochronous).feed(encode(submit)) == [submit]


@pytest.mark.rule("iso-limit")
def test_1024_packets_are_read_and_1025_refused() -> None:
    iso = tuple(IsoPacket(index, 1) for index in range(MAX_ISO_PACKETS))
    submit = Submit(1, 2, 1, 11, 0x200, MAX_ISO_PACKETS, number_of_packets=MAX_ISO_PACKETS, iso=iso)
    assert CommandReader(is_isochronous).feed(encode(submit)) == [submit]
    with pytest.raises(ProtocolError, match="1025 is above 1024"):
        CommandReader(is_isochronous).feed(encode(Submit(1, 2, 1, 11, 0, 0, number_of_packets=1025)))


@given(data=st.binary(max_size=300), command=st.sampled_from(sorted(COMMANDS)), at=st.integers(0, 47))
def test_any_bytes_give_commands_or_a_protocol_error(data: bytes, command: str, at: int) -> None:
    stream = golden.load(command)[:at] + data
    reader = CommandReader(is_isochronous)
    try:
        messages = reader.feed(stream)
    except ProtocolError:
        return
    assert stream.startswith(b"".join(map(encode, messages))[:20])


@given(data=st.binary(max_size=300), reply=st.sampled_from(sorted(REPLIES)), at=st.integers(0, 47))
def test_any_bytes_give_replies_or_a_protocol_error(data: bytes, reply: str, at: int) -> None:
    reader = reader_expecting(COMMANDS[REPLIES[reply][0]], REPLIES[reply][1])
    stream = golden.load(reply)[:at] + data
    try:
        messages = reader.feed(stream)
    except ProtocolError:
        return
    assert len(messages) <= 2


# ---- refusals of a client ----


@pytest.mark.rule("actual-length-bounded")
@pytest.mark.rule("bug-timeout-length")
def test_more_data_than_requested_is_refused() -> None:
    reader = ReplyReader()
    reader.expect(BULK_IN)
    with pytest.raises(ProtocolError, match="above transfer_buffer_length 517"):
        reader.feed(encode(RetSubmit(BULK_IN.seqnum, 0, 518, data=bytes(518))))


@pytest.mark.rule("ret-known-seqnum")
def test_an_unknown_or_answered_seqnum_is_refused() -> None:
    reader = ReplyReader()
    reader.expect(BULK_IN)
    reply = encode(RetSubmit(BULK_IN.seqnum, 0, 0))
    assert len(reader.feed(reply)) == 1
    with pytest.raises(ProtocolError, match="answered already"):
        reader.feed(reply)


@pytest.mark.rule("iso-sum")
def test_actual_lengths_that_do_not_add_up_are_refused() -> None:
    reader = ReplyReader()
    reader.expect(ISO_OUT)
    iso = (IsoPacket(0, 3, 3), IsoPacket(3, 4, 4))
    with pytest.raises(ProtocolError, match="7 together, actual_length is 0"):
        reader.feed(encode(RetSubmit(ISO_OUT.seqnum, 0, 0, number_of_packets=2, iso=iso)))


@pytest.mark.rule("iso-descriptors-kept")
def test_descriptors_that_differ_from_the_request_are_refused() -> None:
    reader = ReplyReader()
    reader.expect(ISO_OUT)
    iso = (IsoPacket(0, 3, 3), IsoPacket(4, 4, 4))
    with pytest.raises(ProtocolError, match="offset=4"):
        reader.feed(encode(RetSubmit(ISO_OUT.seqnum, 0, 7, number_of_packets=2, iso=iso)))


@pytest.mark.rule("ret-basic-zero")
def test_a_reply_that_names_an_endpoint_is_refused() -> None:
    reader = ReplyReader()
    reader.expect(BULK_IN)
    reply = bytearray(encode(RetSubmit(BULK_IN.seqnum, 0, 0)))
    reply[19] = 14
    with pytest.raises(ProtocolError, match="not 0"):
        reader.feed(bytes(reply))


@pytest.mark.rule("unlink-pending")
def test_a_cancelled_urb_gets_no_reply() -> None:
    reader = ReplyReader()
    reader.expect(BULK_IN)
    reader.expect(UNLINK)
    assert len(reader.feed(golden.load("ret_unlink_cancelled"))) == 1
    with pytest.raises(ProtocolError, match="no such URB"):
        reader.feed(encode(RetSubmit(BULK_IN.seqnum, 0, 0)))


@pytest.mark.rule("unlink-answered")
def test_an_unlink_that_came_too_late_follows_the_reply() -> None:
    reader = ReplyReader()
    reader.expect(BULK_IN)
    reader.expect(UNLINK)
    answered = encode(answer(BULK_IN, 0, 6, b"abcdef"))
    assert len(reader.feed(answered + golden.load("ret_unlink_too_late"))) == 2
    reader = ReplyReader()
    reader.expect(BULK_IN)
    reader.expect(UNLINK)
    with pytest.raises(ProtocolError, match="still to be answered"):
        reader.feed(golden.load("ret_unlink_too_late") + answered)


@pytest.mark.rule("unlink-unknown")
def test_an_unlink_of_nothing_has_status_0() -> None:
    reader = ReplyReader()
    reader.expect(UNLINK)
    with pytest.raises(ProtocolError, match="not in flight"):
        reader.feed(golden.load("ret_unlink_cancelled"))


# ---- numbers ----


@pytest.mark.rule("linux-errno")
def test_errno_values_are_those_of_linux() -> None:
    values = {name: value for name, value in vars(constants).items() if name.startswith("LINUX_E")}
    assert values == {
        "LINUX_ENOENT": 2,
        "LINUX_ENOMEM": 12,
        "LINUX_EXDEV": 18,
        "LINUX_ENODEV": 19,
        "LINUX_EINVAL": 22,
        "LINUX_EPIPE": 32,
        "LINUX_EPROTO": 71,
        "LINUX_EOVERFLOW": 75,
        "LINUX_EILSEQ": 84,
        "LINUX_EMSGSIZE": 90,
        "LINUX_ECONNRESET": 104,
        "LINUX_ESHUTDOWN": 108,
        "LINUX_ETIMEDOUT": 110,
        "LINUX_EREMOTEIO": 121,
    }
    assert golden.load("ret_unlink_cancelled")[20:24] == (-LINUX_ECONNRESET).to_bytes(4, "big", signed=True)


@pytest.mark.rule("flags-values")
def test_transfer_flags_are_those_of_the_header() -> None:
    values = {name: value for name, value in vars(constants).items() if name.startswith("URB_")}
    assert values == {
        "URB_SHORT_NOT_OK": 0x1,
        "URB_ISO_ASAP": 0x2,
        "URB_ZERO_PACKET": 0x40,
        "URB_NO_INTERRUPT": 0x80,
        "URB_DIR_IN": 0x200,
        "URB_HEADER_SIZE": 48,
    }
