"""The part of a flood that reaches the extension: real sockets of another process, a fake extension."""

import asyncio

import pytest

from tests.flood import Flood
from tests.loopback import FLOOD, from_other_addresses
from tests.unit.server.rig import DEVICE, PATIENCE, serving
from usbipd.protocol.constants import ST_DEV_BUSY
from usbipd.protocol.op import encode_devlist_reply, encode_devlist_request
from usbipd.server.extension import MOST_AT_ONCE, MOST_WAITING


@from_other_addresses
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["devlist", "import", "leave"])
async def test_requests_at_the_extension_stay_limited(mode: str) -> None:
    async with serving(total=128, per_address=32) as server, asyncio.timeout(3 * PATIENCE):
        extension = server.extension
        extension.status, extension.is_patient = ST_DEV_BUSY, True
        host, port = server.address
        flood = await asyncio.to_thread(
            Flood, host, port, mode, connections=300, sources=FLOOD, busid=DEVICE.busid
        )
        for _number in range(20):
            reply = await server.ask(encode_devlist_request(), source="127.0.0.77")
            assert reply == encode_devlist_reply([DEVICE])
        await asyncio.to_thread(flood.__exit__, None, None, None)
        assert flood.made >= 300
        assert 0 < extension.most_running <= 1 + 2 * (MOST_AT_ONCE + MOST_WAITING)
        assert extension.most_waiting <= MOST_WAITING
