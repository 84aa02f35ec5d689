"""UNLINK beside a partly completed transfer: macOS aborts a whole endpoint to end one transfer.

If the bytes of an aborted transfer are unknown, it ends with an error.  No byte is lost without an error, and
none is duplicated.
"""

from collections.abc import Iterator

import pytest

from tests.client import Session
from tests.mac.daemons.conftest import VARIANTS
from tests.mac.daemons.daemon import BULK_IN, BULK_OUT, PACKET, MacDaemon
from tests.mac.mac import Device
from tests.mac.machine import Machine
from usbipd.protocol.constants import LINUX_ECONNRESET, LINUX_EILSEQ

pytestmark = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(params=[True, False], ids=["reported", "not reported"])
def knows(mac: Machine, variant: str, request: pytest.FixtureRequest) -> bool:
    """Whether the bytes of an aborted transfer are known: the kernel reports them and libusb counts them."""
    mac.kernel.switch(abort_reports_bytes=request.param)
    return bool(request.param) and variant == "ours"


@pytest.fixture
def device(mac: Machine, daemon: MacDaemon) -> Device:
    gadget = mac.plug(2)
    daemon.bind(gadget.busid)
    return gadget.device


@pytest.fixture
def session(daemon: MacDaemon, device: Device) -> Iterator[Session]:
    with daemon.attach("20-2") as session:
        yield session


def test_unlink_beside_a_partly_filled_transfer(knows: bool, device: Device, session: Session) -> None:
    first, second = (session.submit(BULK_IN, length=4 * PACKET) for _urb in range(2))
    device.until_waiting(BULK_IN, 2)
    device.give(BULK_IN, b"1" * PACKET + b"2" * PACKET)
    assert session.unlink(second) == -LINUX_ECONNRESET
    device.give(BULK_IN, b"3" * 100)
    if knows:
        reply = session.wait_submit(first)
        assert (reply.status, reply.data) == (0, b"1" * PACKET + b"2" * PACKET + b"3" * 100)
    else:
        assert session.wait_submit(first).status == -LINUX_EILSEQ
        assert session.bulk_in(BULK_IN, PACKET) == b"3" * 100


def test_unlink_beside_a_partly_sent_transfer(knows: bool, device: Device, session: Session) -> None:
    device.credit(BULK_OUT, 2)
    data = b"".join(bytes([number]) * PACKET for number in range(4))
    first = session.submit(BULK_OUT, data=data)
    second = session.submit(BULK_OUT, data=b"second" * 10)
    device.until_waiting(BULK_OUT, 2)
    assert session.unlink(second) == -LINUX_ECONNRESET
    device.credit(BULK_OUT, None)
    assert session.wait_submit(first).status == (0 if knows else -LINUX_EILSEQ)
    session.bulk_out(BULK_OUT, b"end")
    arrived = data if knows else data[: 2 * PACKET]
    assert session.bulk_in(BULK_IN, 8 * PACKET) == arrived + b"end"
