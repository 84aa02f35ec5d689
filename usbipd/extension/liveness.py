"""Checks whether a child still answers PING.  Runs in the extension.

A connection proves nothing: the kernel accepts connections and bytes even for a stopped process.
"""

import asyncio
import contextlib
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.extension.supervisor import Child, Ping
from usbipd.ipc.messages import Command, Nothing

PING_TIMEOUT: Final = 2.0
"""Seconds for a child to answer."""


async def silence_of(child: Child) -> float | None:
    """Seconds for which `child` has not answered a PING, at least `PING_TIMEOUT`; None: it answers.

    Each child has at most one unanswered PING.  Concurrent callers share it, and later ones return at once if
    it is overdue.  A child that has ended is not silent.
    """
    loop = asyncio.get_running_loop()
    ping = child.ping
    if ping is None or ping.answer.done():
        ping = child.ping = Ping(loop.time(), asyncio.create_task(_ask(child)))
    await asyncio.wait({ping.answer}, timeout=max(0.0, ping.sent + PING_TIMEOUT - loop.time()))
    return None if ping.answer.done() else loop.time() - ping.sent


async def _ask(child: Child) -> None:
    with contextlib.suppress(UsbipdError):  # the channel was closed
        await child.channel.request(Command.PING, Nothing(), Nothing, timeout=None)
