"""The pump between a scripted client and a scripted device."""

import itertools

import pytest

from tests.unit.worker.rig import (
    BULK,
    CONTROL,
    DEVID,
    GET_DEVICE_DESCRIPTOR,
    IN,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OUT,
    LOOP_IN,
    LOOP_OUT,
    MODEL_IN,
    MODEL_OUT,
    SINK,
    SOURCE,
    Rig,
    ScriptedDevice,
    show_that_the_host_counts,
    statuses,
)
from tests.urb import Submit, Unlink, encode
from usbipd import _pump
from usbipd.counters import read_blocked
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EINVAL,
    LINUX_EMSGSIZE,
    LINUX_ENOMEM,
    LINUX_EOVERFLOW,
    LINUX_EPIPE,
    LINUX_EPROTO,
    LINUX_EREMOTEIO,
    LINUX_ESHUTDOWN,
    LINUX_EXDEV,
    MAX_TRANSFER_LENGTH,
    URB_SHORT_NOT_OK,
)
from usbipd.simulated.descriptors import configuration_descriptor, endpoint_descriptor, interface_descriptor
from usbipd.simulated.device import Handshake

GET_CONFIGURATION_DESCRIPTOR = "80 06 0002 0000 ff00"


# ---- control -------------------------------------------------------------------------------------


@pytest.mark.rule("setup-little-endian")
def test_descriptor_is_cut_to_wlength(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).data == rig.device.device_descriptor
    assert rig.control("80 06 0001 0000 0800").data == rig.device.device_descriptor[:8]
    assert rig.control("80 06 0001 0000 ff00").data == rig.device.device_descriptor


@pytest.mark.rule("remote-wakeup")
def test_remote_wakeup_is_masked() -> None:
    raw = configuration_descriptor(interface_descriptor(0, 0, 0xFF), remote_wakeup=True)
    waking = Rig(type("Waking", (ScriptedDevice,), {"configurations": (raw,), "behaviours": {}})())
    assert waking.control(GET_CONFIGURATION_DESCRIPTOR).data == raw[:7] + bytes([raw[7] & ~0x20]) + raw[8:]
    waking.close()


@pytest.mark.rule("uas-falls-back")
def test_descriptors_of_streams_are_shown_unchanged() -> None:
    # Linux's stub changes no descriptor; the client takes bulk-only because its vhci_hcd has no streams.
    companion = bytes.fromhex("06 30 0f 04 00 00")  # USB 3.2 table 9-28: bMaxBurst 15, 16 streams
    raw = configuration_descriptor(
        interface_descriptor(0, 1, 0x08, 0x06, 0x62),  # USB Attached SCSI
        endpoint_descriptor(MODEL_IN, BULK, 1024, 0) + companion,
    )
    device = type("Uas", (ScriptedDevice,), {"configurations": (raw,), "behaviours": {}})()
    rig = Rig(device)
    assert rig.control(GET_CONFIGURATION_DESCRIPTOR).data == raw
    device.to_read[MODEL_IN] = [b"status"]
    assert rig.exchange(rig.submit(MODEL_IN, 512))[0].data == b"status"
    rig.close()


def test_stall_and_recovery(rig: Rig) -> None:
    assert rig.control("80 06 0009 0000 0400").status == -LINUX_EPIPE
    assert rig.control("c0 01 0000 0000 0400").status == -LINUX_EPIPE
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0


@pytest.mark.rule("ep0-direction")
def test_header_and_setup_of_different_directions_are_refused(rig: Rig) -> None:
    out_setup = bytes.fromhex("21 20 0000 0000 0700")
    [reply] = rig.exchange(rig.submit(0x80, 7, setup=out_setup))
    assert reply.status == -LINUX_EINVAL
    in_setup = bytes.fromhex("80 06 0001 0000 0700")
    [reply] = rig.exchange(rig.submit(0x00, 7, b"abcdefg", setup=in_setup))
    assert reply.status == -LINUX_EINVAL
    assert rig.device.requests == []


def test_wlength_above_the_buffer_is_refused(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR, length=8).status == -LINUX_EINVAL


@pytest.mark.rule("set-interface")
def test_set_interface_changes_the_type_of_an_endpoint(rig: Rig) -> None:
    gone = rig.submit(ISO_OUT, 3, b"abc", number_of_packets=0)
    assert rig.exchange(gone)[0].status == -LINUX_EPIPE
    assert rig.control("01 0b 0100 0100 0000").status == 0
    assert rig.control("81 0a 0000 0100 0100").data == b"\x01"
    rig.client.send(encode(rig.submit(ISO_OUT, 3, b"abc", packets=[(0, 3)])))
    [reply] = rig.awaited()
    assert (reply.status, reply.actual_length) == (0, 3)
    assert rig.control("01 0b 0000 0100 0000").status == 0
    assert rig.exchange(rig.submit(ISO_OUT, 3, b"abc", number_of_packets=0))[0].status == -LINUX_EPIPE
    assert rig.control("01 0b 0200 0100 0000").status == -LINUX_EPIPE


@pytest.mark.rule("set-configuration")
def test_set_configuration_ends_pending_urbs_and_settings(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    waiting = rig.submit(LOOP_IN, 512)
    assert rig.exchange(waiting) == []
    request = rig.submit(0, setup=bytes.fromhex("00 09 0100 0000 0000"))
    assert statuses(rig.exchange(request)) == [(waiting.seqnum, -LINUX_ESHUTDOWN), (request.seqnum, 0)]
    assert rig.control("81 0a 0000 0100 0100").data == b"\x00"
    assert rig.control("00 09 0700 0000 0000").status == -LINUX_EPIPE


@pytest.mark.parametrize("setup", ["00 09 0700 0000 0000", "01 0b 0700 0000 0000"])
def test_a_configuration_or_setting_that_does_not_exist_ends_no_urb(rig: Rig, setup: str) -> None:
    waiting = rig.submit(LOOP_IN, 512)
    assert rig.exchange(waiting) == []
    assert rig.control(setup).status == -LINUX_EPIPE
    assert rig.counters.in_flight == 1


def test_a_failed_set_configuration_keeps_the_endpoints(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    rig.device.reset_error = RuntimeError("stuck")
    assert rig.control("00 09 0100 0000 0000").status == -LINUX_EPROTO
    assert rig.control("81 0a 0000 0100 0100").data == b"\x01"
    rig.client.send(encode(rig.submit(ISO_OUT, 3, b"abc", packets=[(0, 3)])))
    assert rig.awaited()[0].status == 0
    rig.device.reset_error = None


def test_the_counter_page_shows_a_blocking_call_to_the_device(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not answer meanwhile: in intercepted requests, and in the reset after a client."""
    shown: list[float | None] = []
    monkeypatch.setattr(rig.device, "reset", lambda: shown.append(read_blocked(rig.page)))
    for step in (
        lambda: rig.control("00 09 0100 0000 0000"),
        lambda: rig.control("23 03 0400 0000 0000"),
        rig.pump.restore,
    ):
        step()
        assert read_blocked(rig.page) is None
    assert len(shown) == 3
    assert None not in shown


def test_set_interface_leaves_the_urbs_of_others(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    stream, other = rig.submit(ISO_IN, 1000, packets=[(i, 1) for i in range(1000)]), rig.submit(LOOP_IN, 64)
    assert rig.exchange(stream, other) == []
    request = rig.submit(0, setup=bytes.fromhex("01 0b 0000 0100 0000"))
    assert statuses(rig.exchange(request)) == [(stream.seqnum, -LINUX_ESHUTDOWN), (request.seqnum, 0)]
    assert {reply.seqnum for reply in rig.exchange(rig.submit(LOOP_OUT, 1, b"x"))} > {other.seqnum}


@pytest.mark.rule("clear-halt")
def test_stalled_endpoint_stays_halted_until_cleared(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [Handshake.STALL, b"later"]
    assert rig.exchange(rig.submit(MODEL_IN, 512))[0].status == -LINUX_EPIPE
    assert rig.exchange(rig.submit(MODEL_IN, 512))[0].status == -LINUX_EPIPE
    assert rig.control("82 00 0000 8100 0200").data == b"\x01\x00"
    assert rig.control("02 01 0000 8100 0000").status == 0
    assert rig.device.cleared == [MODEL_IN]
    assert rig.exchange(rig.submit(MODEL_IN, 512))[0].data == b"later"


@pytest.mark.rule("set-interface")
def test_set_interface_clears_the_halts_of_that_interface(rig: Rig) -> None:
    def halted() -> bool:
        return rig.control("82 00 0000 8100 0200").data == b"\x01\x00"

    assert rig.control("02 03 0000 8100 0000").status == 0  # SET_FEATURE(ENDPOINT_HALT)
    assert rig.control("01 0b 0100 0100 0000").status == 0
    assert halted(), "that was the other interface"
    assert rig.control("01 0b 0000 0000 0000").status == 0
    assert not halted()
    rig.device.to_read[MODEL_IN] = [b"data"]
    assert rig.exchange(rig.submit(MODEL_IN, 512))[0].data == b"data"


def test_isochronous_urbs_follow_each_other(rig: Rig) -> None:
    """Each packet has a microframe: the second URB begins at the end of the first."""
    rig.control("01 0b 0100 0100 0000")
    packets = [(number, 1) for number in range(16)]
    urbs = [rig.submit(ISO_IN, 16, packets=packets) for _ in range(3)]
    replies = rig.exchange(*urbs)
    while len(replies) < 3:
        replies += rig.awaited()
    starts = [reply.start_frame for reply in replies]
    assert [later - earlier for earlier, later in itertools.pairwise(starts)] == [16, 16]


@pytest.mark.rule("clear-halt")
def test_endpoint_0_is_never_halted(rig: Rig) -> None:
    assert rig.control("02 01 0000 0000 0000").status == 0
    assert rig.control("02 01 0000 8000 0000").status == 0
    assert rig.control("02 01 0000 0001 0000").status == -LINUX_EPIPE  # no endpoint
    assert rig.device.cleared == []


@pytest.mark.rule("port-reset")
def test_port_reset_resets_the_device(rig: Rig) -> None:
    assert rig.control("23 03 0400 0000 0000").status == 0
    assert rig.device.resets == 1


# ---- bulk and interrupt --------------------------------------------------------------------------


@pytest.mark.rule("short-not-ok")
def test_short_read(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [b"short", b"short"]
    lenient, strict = rig.submit(MODEL_IN, 512), rig.submit(MODEL_IN, 512, flags=URB_SHORT_NOT_OK)
    first, second = rig.exchange(lenient, strict)
    assert (first.status, first.data) == (0, b"short")
    assert (second.status, second.data) == (-LINUX_EREMOTEIO, b"short")
    assert rig.counters.errors == 0, "the device did nothing wrong"


@pytest.mark.rule("actual-length-bounded")
def test_babble_is_cut_and_reported(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [b"more than asked for"]
    [reply] = rig.exchange(rig.submit(MODEL_IN, 4))
    assert (reply.status, reply.data) == (-LINUX_EOVERFLOW, b"more")


@pytest.mark.rule("ret-data-in-only")
@pytest.mark.rule("ret-out-taken")
def test_out_reports_its_length_and_carries_no_data(rig: Rig) -> None:
    rig.send(encode(rig.submit(SINK, 1000, bytes(1000))))
    assert len(rig.client.recv(4096)) == 48


@pytest.mark.rule("bug-zero-length")
def test_zero_length_bulk(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [b""]
    replies = rig.exchange(rig.submit(MODEL_OUT), rig.submit(MODEL_IN), rig.submit(SOURCE), rig.submit(SINK))
    assert [(reply.status, reply.actual_length) for reply in replies] == [(0, 0)] * 4
    assert rig.device.written == [(MODEL_OUT, b"")]


def test_out_data_that_the_device_takes_in_parts(rig: Rig) -> None:
    rig.device.accepts = [2, Handshake.NAK]
    assert rig.exchange(rig.submit(MODEL_OUT, 5, b"abcde")) == []
    rig.device.accepts = []
    replies = rig.exchange(rig.submit(MODEL_OUT, 1, b"f"))
    assert [reply.actual_length for reply in replies] == [5, 1]
    assert rig.device.written == [(MODEL_OUT, b"ab"), (MODEL_OUT, b"cde"), (MODEL_OUT, b"f")]


def test_model_that_raises_fails_its_urb_only(rig: Rig) -> None:
    rig.device.to_read[MODEL_IN] = [ValueError("no such block"), b"fine"]
    first, second = rig.exchange(rig.submit(MODEL_IN, 8), rig.submit(MODEL_IN, 8))
    assert (first.status, second.data) == (-LINUX_EPROTO, b"fine")
    assert rig.transfers.problem == "ValueError: no such block"


def test_model_that_raises_fails_its_packet_only(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    rig.device.iso_packets = [b"one", ValueError("no such frame"), b"two"]
    [reply] = rig.exchange(rig.submit(ISO_IN, 24, packets=[(0, 8), (8, 8), (16, 8)])) or rig.awaited()
    assert [packet.status for packet in reply.iso] == [0, -LINUX_EXDEV, 0]
    assert reply.data == b"onetwo"
    assert rig.transfers.problem == "ValueError: no such frame"


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise MemoryError


@pytest.mark.parametrize(
    ("error", "status", "problem"),
    [
        (MemoryError(), -LINUX_ENOMEM, "MemoryError: "),
        (UnprintableError(), -LINUX_EPROTO, "an exception that cannot be printed"),
    ],
)
def test_model_that_lacks_memory_answers(rig: Rig, error: Exception, status: int, problem: str) -> None:
    rig.device.to_read[MODEL_IN] = [error, b"fine"]
    first, second = rig.exchange(rig.submit(MODEL_IN, 8), rig.submit(MODEL_IN, 8))
    assert (first.status, second.data) == (status, b"fine")
    assert rig.transfers.problem == problem


@pytest.mark.parametrize("length", [1, 320, 321, 1024, 65536, 1000000, MAX_TRANSFER_LENGTH])
def test_source_fills_the_requested_length(rig: Rig, length: int) -> None:
    rig.send(encode(rig.submit(SOURCE, length)))
    data = b"".join(reply.data for reply in rig.awaited())
    packet = bytes(i % 63 for i in range(512))
    assert data == (packet * (length // 512 + 1))[:length]


@pytest.mark.parametrize("length", [1, 511, 512, 513, 320, 321, 65536, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
def test_loopback_returns_what_was_written(rig: Rig, length: int) -> None:
    content = bytes(i * 7 % 251 for i in range(length))
    out, back = rig.submit(LOOP_OUT, length, content), rig.submit(LOOP_IN, length)
    rig.send(encode(out) + encode(back))
    replies = rig.awaited()
    while len(replies) < 2:
        replies += rig.awaited()
    by_seqnum = {reply.seqnum: reply for reply in replies}
    assert by_seqnum[out.seqnum].actual_length == length
    assert by_seqnum[back.seqnum].data == content


def test_loopback_keeps_message_boundaries(rig: Rig) -> None:
    rig.exchange(*(rig.submit(LOOP_OUT, len(text), text) for text in (b"one", b"", b"three")))
    replies = rig.exchange(*(rig.submit(LOOP_IN, 512) for _ in range(3)))
    assert [reply.data for reply in replies] == [b"one", b"", b"three"]


@pytest.mark.rule("order-per-endpoint")
def test_order_per_endpoint(rig: Rig) -> None:
    waiting = [rig.submit(LOOP_IN, 64) for _ in range(50)]
    assert rig.exchange(*waiting) == []
    replies = rig.exchange(*(rig.submit(LOOP_OUT, 1, bytes([i])) for i in range(50)))
    came_back = [reply for reply in replies if reply.data]
    assert [reply.seqnum for reply in came_back] == [submit.seqnum for submit in waiting]
    assert b"".join(reply.data for reply in came_back) == bytes(range(50))


@pytest.mark.rule("endpoints-independent")
@pytest.mark.rule("idle-in")
def test_a_waiting_in_blocks_nothing_else(rig: Rig) -> None:
    waiting = [rig.submit(endpoint, 64) for endpoint in (INTERRUPT_IN, LOOP_IN, MODEL_IN)]
    assert rig.exchange(*waiting) == []
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    assert rig.exchange(rig.submit(SINK, 512, bytes(512)))[0].status == 0
    assert rig.exchange(rig.submit(SOURCE, 512))[0].status == 0


# ---- isochronous ---------------------------------------------------------------------------------


@pytest.mark.rule("iso-compacted")
@pytest.mark.rule("iso-sum")
@pytest.mark.rule("iso-error-count")
@pytest.mark.rule("iso-descriptors-kept")
def test_isochronous_in_is_compacted(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    rig.device.iso_packets = [b"ab", b"", RuntimeError("missed"), b"cdef", b"toolong"]
    packets = [(0, 4), (10, 4), (20, 4), (24, 4), (40, 4)]
    submit = rig.submit(ISO_IN, 64, packets=packets)
    rig.client.send(encode(submit))
    [reply] = rig.awaited()
    assert reply.data == b"abcdeftool"
    assert [packet.actual_length for packet in reply.iso] == [2, 0, 0, 4, 4]
    assert [packet.status for packet in reply.iso] == [0, 0, -18, 0, -75]
    assert reply.error_count == 2


def test_isochronous_out_with_gaps(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    rig.client.send(encode(rig.submit(ISO_OUT, 12, b"ab..cde...f.", packets=[(0, 2), (4, 3), (10, 1)])))
    [reply] = rig.awaited()
    assert reply.actual_length == 6
    assert rig.device.iso_written == [b"ab", b"cde", b"f"]


def test_a_cancelled_stream_does_not_delay_the_next(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    for _ in range(100):  # two minutes of packets
        submit = rig.submit(ISO_IN, 1000, packets=[(i, 1) for i in range(1000)])
        rig.exchange(submit, rig.unlink(submit))
    rig.client.send(encode(rig.submit(ISO_IN, 1, packets=[(0, 1)])))
    assert rig.awaited()[0].status == 0


@pytest.mark.parametrize(
    "packets", [[(0, 9)], [(9, 0)], [(4, 5)], [(0xFFFFFFFF, 2)], [(2, 0xFFFFFFFF)], [(4, 4), (0, 4)]]
)
def test_packets_outside_the_buffer_are_refused(rig: Rig, packets: list[tuple[int, int]]) -> None:
    rig.control("01 0b 0100 0100 0000")
    [reply] = rig.exchange(rig.submit(ISO_OUT, 8, bytes(8), packets=packets))
    assert reply.status == -LINUX_EINVAL


@pytest.mark.parametrize(("length", "status"), [(0xFFFF, 0), (0x10000, -LINUX_EMSGSIZE)])
def test_a_packet_that_no_endpoint_can_send_is_refused(rig: Rig, length: int, status: int) -> None:
    """A length above 16 bits would make libusb for macOS abort the worker."""
    rig.control("01 0b 0100 0100 0000")
    rig.client.send(encode(rig.submit(ISO_IN, length, packets=[(0, length)])))
    [reply] = rig.awaited()
    assert reply.status == status


@pytest.mark.rule("iso-limit")
def test_isochronous_with_the_greatest_number_of_packets(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    rig.client.send(encode(rig.submit(ISO_IN, 1024, packets=[(i, 1) for i in range(1024)])))
    [reply] = rig.awaited()
    assert len(reply.iso) == 1024


# ---- bad bytes -----------------------------------------------------------------------------------


def submit_with(rig: Rig, **fields: int) -> Submit:
    values = {"seqnum": 1, "devid": 0x00F00002, "direction": 0, "ep": 3, "transfer_flags": 0}
    return Submit(**{**values, "transfer_buffer_length": 0, **fields})  # type: ignore[arg-type]


@pytest.mark.rule("devid-checked")
@pytest.mark.rule("capped-lengths")
@pytest.mark.rule("ep-number")
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"devid": 7}, "devid 0x00000007 is not the imported device's 0x00f00002"),
        ({"ep": 16}, "ep 16: ep is 0 to 15"),
        ({"ep": 0x81, "direction": IN}, "ep 129: ep is 0 to 15"),
        ({"direction": 2}, "direction 2"),
        ({"transfer_buffer_length": 0xFFFFFFFF}, "transfer_buffer_length 4294967295 is above 16777216"),
        ({"transfer_buffer_length": MAX_TRANSFER_LENGTH + 1}, "is above 16777216"),
        ({"ep": 9, "number_of_packets": 3}, "no endpoint 9 OUT in the active setting"),
    ],
)
def test_impossible_submit_ends_the_connection(rig: Rig, fields: dict[str, int], problem: str) -> None:
    assert rig.send(encode(submit_with(rig, **fields))) == _pump.CLIENT_FAILED
    assert problem in rig.pump.problem
    assert rig.received() == []


@pytest.mark.rule("iso-limit")
def test_too_many_packets(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    wake = rig.send(encode(submit_with(rig, ep=5, direction=IN, number_of_packets=1025)))
    assert wake == _pump.CLIENT_FAILED
    assert "number_of_packets 1025 is above 1024" in rig.pump.problem


def test_duplicate_seqnum(rig: Rig) -> None:
    submit = rig.submit(LOOP_IN, 64)
    assert rig.send(encode(submit) * 2) == _pump.CLIENT_FAILED
    assert "seqnum 1: an URB of this seqnum is in flight" in rig.pump.problem


def test_unknown_command(rig: Rig) -> None:
    assert rig.send(b"\x00\x00\x00\x05" + bytes(44)) == _pump.CLIENT_FAILED
    assert "command 0x00000005" in rig.pump.problem


def test_unlink_for_another_device(rig: Rig) -> None:
    assert rig.send(encode(Unlink(1, 7, 0, 0, 0))) == _pump.CLIENT_FAILED


@pytest.mark.rule("packets-by-endpoint")
@pytest.mark.rule("packets-echoed")
def test_endpoint_that_does_not_exist_is_answered(rig: Rig) -> None:
    missing = rig.submit(0x09, 700, bytes(700))
    after = rig.submit(SINK, 3, b"abc")
    assert statuses(rig.exchange(missing, after)) == [(missing.seqnum, -LINUX_EPIPE), (after.seqnum, 0)]


def test_an_interface_without_setting_0_begins_with_its_first_one() -> None:
    """Before, between and after clients; and no client's session ends with a SET_INTERFACE of setting 0."""
    device = ScriptedDevice()
    device.configurations = (
        configuration_descriptor(
            interface_descriptor(0, 1, 0xFF, bAlternateSetting=2),
            endpoint_descriptor(MODEL_IN, BULK, 512, 0),
            interface_descriptor(0, 1, 0xFF, bAlternateSetting=3),
            endpoint_descriptor(0x86, BULK, 512, 0),
        ),
    )
    device.behaviours = {}
    rig = Rig(device)
    assert rig.control("01 0b 0000 0000 0000").status == -LINUX_EPIPE
    for select in (None, "01 0b 0300 0000 0000", "00 09 0100 0000 0000"):
        device.to_read = {MODEL_IN: [b"first"], 0x86: [b"other"]}
        assert rig.exchange(rig.submit(MODEL_IN, 512))[0].data == b"first"
        if select is not None:
            assert rig.control(select).status == 0
        assert rig.finish()
        assert rig.pump.restore() == 0
        rig.attach()
    rig.close()


def test_control_endpoint_besides_0_is_refused() -> None:
    device = ScriptedDevice()
    device.configurations = (
        configuration_descriptor(interface_descriptor(0, 1, 0xFF), endpoint_descriptor(0x06, CONTROL, 64, 0)),
    )
    device.behaviours = {}
    rig = Rig(device)
    request = rig.submit(0x06, setup=bytes.fromhex("21 20 0000 0000 0000"))
    assert statuses(rig.exchange(request)) == [(request.seqnum, -LINUX_EINVAL)]
    assert device.requests == [], "what was meant for endpoint 6 does not reach endpoint 0"
    rig.close()


# ---- UNLINK, at any moment of the URB that it names -----------------------------------------------


@pytest.mark.rule("unlink-by-seqnum")
@pytest.mark.rule("bug-unlink-ep0")
def test_unlink_of_one_among_many(rig: Rig) -> None:
    first, second, third = (rig.submit(LOOP_IN, 64) for _ in range(3))
    show_that_the_host_counts(rig)
    rig.exchange(first, second, third)
    unlink = rig.unlink(second)
    assert statuses(rig.exchange(unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET)]
    replies = rig.exchange(rig.submit(LOOP_OUT, 1, b"x"), rig.submit(LOOP_OUT, 1, b"y"))
    assert [(r.seqnum, r.data) for r in replies if r.data] == [(first.seqnum, b"x"), (third.seqnum, b"y")]


@pytest.mark.rule("unlink-answered")
def test_unlink_at_the_same_time_as_the_completion(rig: Rig) -> None:
    submit = rig.submit(SOURCE, 4)
    unlink = rig.unlink(submit)
    answer, late = rig.exchange(submit, unlink)
    assert (answer.seqnum, answer.data) == (submit.seqnum, bytes(range(4)))
    assert (late.seqnum, late.status) == (unlink.seqnum, 0)


@pytest.mark.rule("unlink-first")
def test_an_unlink_that_overtakes_its_submit(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    setup = bytes.fromhex(GET_DEVICE_DESCRIPTOR)
    submits = [rig.submit(SINK, data=b"never"), rig.submit(LOOP_IN, 64), rig.submit(0x80, 18, setup=setup)]
    unlinks = [rig.unlink(submit) for submit in submits]
    again = rig.unlink(submits[0])
    assert rig.exchange(*unlinks, again) == []
    replies = rig.exchange(*submits)
    expected = [(unlink.seqnum, -LINUX_ECONNRESET) for unlink in unlinks]
    expected.insert(1, (again.seqnum, 0))
    assert statuses(replies) == expected
    assert rig.counters.in_flight == 0
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    assert rig.exchange(rig.submit(LOOP_OUT, 1, b"x"))[0].status == 0  # no UNLINK waits for it
    assert rig.exchange(rig.submit(LOOP_IN, 64))[0].data == b"x"


@pytest.mark.rule("unlink-unknown")
def test_unlink_of_a_submit_that_a_later_one_rules_out(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    unlink = _unlink_of_nothing(rig)
    assert rig.exchange(unlink) == []
    later = rig.submit(SOURCE, 4)
    assert statuses(rig.exchange(later)) == [(unlink.seqnum, 0), (later.seqnum, 0)]


@pytest.mark.rule("unlink-unknown")
def test_unlink_of_a_submit_that_never_comes(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    unlink = _unlink_of_nothing(rig)
    rig.client.send(encode(unlink))
    assert statuses(rig.awaited()) == [(unlink.seqnum, 0)]


def _unlink_of_nothing(rig: Rig) -> Unlink:
    """It names a SUBMIT that could have been sent just before, but was not."""
    rig.seqnum += 2
    unlink = Unlink(seqnum=rig.seqnum, devid=DEVID, direction=0, ep=0, unlink_seqnum=rig.seqnum - 1)
    rig.replies.expect(unlink)
    return unlink


@pytest.mark.rule("lost-client")
def test_an_early_unlink_is_dropped_with_its_client(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    submit = rig.submit(SOURCE, 4)
    assert rig.exchange(rig.unlink(submit)) == []
    assert rig.finish()
    rig.attach()
    rig.replies.expect(submit)
    assert rig.exchange(submit)[0].data == bytes(range(4))


@pytest.mark.rule("unlink-answered")
def test_unlink_of_an_urb_without_an_endpoint_is_answered_at_once(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    submit = rig.submit(0x8F, 64)
    assert statuses(rig.exchange(submit)) == [(submit.seqnum, -LINUX_EPIPE)]
    unlink = rig.unlink(submit)
    assert statuses(rig.exchange(unlink)) == [(unlink.seqnum, 0)]


def test_unlink_twice(rig: Rig) -> None:
    submit = rig.submit(LOOP_IN, 64)
    first = rig.unlink(submit)
    second = rig.unlink(submit)
    assert statuses(rig.exchange(submit, first, second)) == [
        (first.seqnum, -LINUX_ECONNRESET),
        (second.seqnum, 0),
    ]


def test_unlink_of_isochronous(rig: Rig) -> None:
    rig.control("01 0b 0100 0100 0000")
    submit = rig.submit(ISO_IN, 1000, packets=[(i, 1) for i in range(1000)])
    unlink = rig.unlink(submit)
    assert statuses(rig.exchange(submit, unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET)]
