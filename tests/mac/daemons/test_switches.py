"""The life cycle of a device under a daemon of a Mac, for all unknown behaviour of that Mac's kernel.

Each pair of values of two switches is in one of the rows.
"""

import itertools
import os
import signal
from typing import Final

import pytest

from tests.mac.daemons.conftest import VARIANTS, StartDaemon
from tests.mac.daemons.daemon import BULK_IN, BULK_OUT, CONFIG, PACKET, MacDaemon, echo, until, use
from tests.mac.machine import Gadget, Machine
from tests.mac.pairs import pairwise
from tests.mac.test_switches import VALUES as OF_SWITCHES
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EILSEQ,
    USB_FEATURE_ENDPOINT_HALT,
    USB_RECIP_ENDPOINT,
    USB_RECIP_INTERFACE,
    USB_REQ_CLEAR_FEATURE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_SET_CONFIGURATION,
    USB_REQ_SET_INTERFACE,
)

ISO_IN: Final = 0x83

VALUES: Final = {
    **OF_SWITCHES,
    "open_needs_root": (False, True),
    "sleep_ends_transfers": (True, False),
    "drivers": (True, False),
    "variant": VARIANTS,
}
"""`drivers`: whether macOS has drivers for the device; `variant`: the libusb; the rest: switches."""


@pytest.mark.parametrize(
    ("variant", "drivers", "switches"),
    [(row.pop("variant"), row.pop("drivers"), row) for row in pairwise(VALUES)],
    ids=itertools.count(),
)
def test_life_of_a_device(
    mac: Machine, start: StartDaemon, drivers: bool, switches: dict[str, object]
) -> None:
    print(switches)
    mac.kernel.switch(**switches)
    # if opening requires root, a worker must stay root: the refusal of a bind says so
    config = f'{CONFIG}confine = "off"\n' if switches["open_needs_root"] else CONFIG
    daemon = start(config=config)
    device = mac.plug(2, drivers=drivers)
    until(lambda: device.has_all_drivers, "its drivers have not started")
    daemon.bind(device.busid)
    assert device.device.drivers == []
    work(daemon, device)
    work(daemon, device)

    session = daemon.attach(device.busid)
    waiting = session.submit(BULK_IN, length=PACKET)
    worker = daemon.worker_pid(device.busid)
    device.device.unplug()
    session.wait_closed()
    assert waiting not in session.replies or session.wait_submit(waiting).status != 0
    session.close()
    device.device.replug()
    worker = daemon.wait_for_successor(device.busid, worker)
    work(daemon, device)

    os.kill(worker, signal.SIGKILL)
    worker = daemon.wait_for_successor(device.busid, worker)
    work(daemon, device)

    with daemon.attach(device.busid) as session:
        mac.kernel.sleep()
        daemon.log.wait_for("this Mac is going to sleep")
        mac.kernel.wake()
        daemon.log.wait_for("this Mac has woken up")
        echo(session)
    assert daemon.worker_pid(device.busid) == worker

    daemon.unbind("--busid", device.busid)
    until(lambda: device.has_all_drivers, "its drivers have not been reattached")
    daemon.bind(device.busid)
    use(daemon, device.busid)
    daemon.kill_all()
    mac.forget_bindings()
    daemon = start(config=config)
    until(
        lambda: device.has_all_drivers, "its drivers have not been reattached after a kill of all processes"
    )
    daemon.stop()


def work(daemon: MacDaemon, device: Gadget) -> None:
    """A client's session: each kind of transfer, some unlinked, and a change of the settings."""
    with daemon.attach(device.busid) as session:
        assert session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, 0x0100, length=18)[:2] == b"\x12\x01"
        echo(session)
        waiting = [session.submit(BULK_IN, length=PACKET) for _urb in range(6)]
        assert session.unlink(waiting.pop(1)) == -LINUX_ECONNRESET
        session.control_out(USB_RECIP_ENDPOINT, USB_REQ_CLEAR_FEATURE, USB_FEATURE_ENDPOINT_HALT, BULK_IN)
        # Either may leave the bytes of the first transfer unknown, which then ends.
        ended = [each for each in waiting if each in session.replies]
        assert ended == waiting[: len(ended)]
        assert len(ended) <= 2
        assert [session.wait_submit(each).status for each in ended] == [-LINUX_EILSEQ] * len(ended)
        for number, each in enumerate(waiting[len(ended) :]):
            session.bulk_out(BULK_OUT, b"%d" % number)
            assert session.wait_submit(each).data == b"%d" % number
        session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, 0)
        device.device.give_packets(ISO_IN, *[b"iso" * 64] * 4)
        assert [each.status for each in session.iso_in(ISO_IN, [192] * 4).iso] == [0] * 4
        echo(session)
        session.control_out(0, USB_REQ_SET_CONFIGURATION, 1)
        echo(session)
