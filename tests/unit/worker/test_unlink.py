"""UNLINK, at any moment of the URB that it names."""

import pytest

from tests.unit.worker.rig import (
    DEVID,
    GET_DEVICE_DESCRIPTOR,
    ISO_IN,
    LOOP_IN,
    LOOP_OUT,
    SINK,
    SOURCE,
    Rig,
    statuses,
)
from tests.urb import Unlink, encode
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EPIPE


@pytest.mark.rule("unlink-by-seqnum")
@pytest.mark.rule("bug-unlink-ep0")
def test_unlink_of_one_among_many(rig: Rig) -> None:
    first, second, third = (rig.submit(LOOP_IN, 64) for _ in range(3))
    rig.exchange(first, second, third)
    unlink = rig.unlink(second)
    assert statuses(rig.exchange(unlink)) == [(unlink.seqnum, -LINUX_ECONNRESET)]
    replies = rig.exchange(rig.submit(LOOP_OUT, 1, b"x"), rig.submit(LOOP_OUT, 1, b"y"))
    assert [(r.seqnum, r.data) for r in replies if r.data] == [(first.seqnum, b"x"), (third.seqnum, b"y")]


@pytest.mark.rule("unlink-answered")
def test_unlink_that_comes_with_the_completion(rig: Rig) -> None:
    submit = rig.submit(SOURCE, 4)
    unlink = rig.unlink(submit)
    answer, late = rig.exchange(submit, unlink)
    assert (answer.seqnum, answer.data) == (submit.seqnum, bytes(range(4)))
    assert (late.seqnum, late.status) == (unlink.seqnum, 0)


@pytest.mark.rule("unlink-first")
def test_unlink_that_comes_before_its_submit(rig: Rig) -> None:
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
    assert rig.exchange(rig.submit(LOOP_OUT, 1, b"x"))[0].status == 0  # nobody waits for it
    assert rig.exchange(rig.submit(LOOP_IN, 64))[0].data == b"x"


@pytest.mark.rule("unlink-unknown")
def test_unlink_of_a_submit_that_another_one_shows_to_be_none(rig: Rig) -> None:
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
    """It names a SUBMIT that might have been sent just before, and was not."""
    rig.seqnum += 2
    unlink = Unlink(seqnum=rig.seqnum, devid=DEVID, direction=0, ep=0, unlink_seqnum=rig.seqnum - 1)
    rig.replies.expect(unlink)
    return unlink


@pytest.mark.rule("lost-client")
def test_unlink_that_comes_before_its_submit_goes_with_its_client(rig: Rig) -> None:
    assert rig.control(GET_DEVICE_DESCRIPTOR).status == 0
    submit = rig.submit(SOURCE, 4)
    assert rig.exchange(rig.unlink(submit)) == []
    assert rig.finish()
    rig.attach()
    rig.replies.expect(submit)
    assert rig.exchange(submit)[0].data == bytes(range(4))


@pytest.mark.rule("unlink-answered")
def test_unlink_of_an_urb_that_has_no_endpoint_is_answered_at_once(rig: Rig) -> None:
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
