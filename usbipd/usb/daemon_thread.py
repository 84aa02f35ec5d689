"""Runs calls that may hang in the kernel or in libusb.  Used by the extension.

asyncio's executor does not suit them: it has few threads, and the process joins them at exit.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar

CLOSE_TIME: Final = 0.5
"""Seconds that a thread of the system has to finish."""

Result = TypeVar("Result")


def call_in_daemon_thread(function: Callable[[], Result]) -> asyncio.Future[Result]:
    """The result of `function`, run in a thread that does not keep the process from exiting.

    Cancelling the future does not stop the thread.  Call it inside the running loop.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def finish(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # of `function`, since there is no error
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as problem:  # for the caller
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name="usbipd-call", daemon=True).start()
    return future


async def close_in_time(close: Callable[[], None]) -> None:
    """Call `close`, which waits for a thread of IOKit, and wait at most `CLOSE_TIME` for it.

    A call that still hangs ends with the process.
    """
    closing = call_in_daemon_thread(close)
    await asyncio.wait({closing}, timeout=CLOSE_TIME)
    if closing.done():
        closing.result()
