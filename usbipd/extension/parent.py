"""Hears of the end of the process that started us.  Runs in the extension of the frozen executable.

A frozen extension is started by a launcher, which is what the service manager and the shell know.  When the
launcher is killed it cannot pass that on, and its orphan would keep the port and the devices.
"""

import asyncio
import contextlib
import os
import select
from collections.abc import Callable
from typing import Any, Final

_BSD: Final[Any] = select  # with kqueue, which `select` does not have on Linux


def watch_parent(pid: int, on_end: Callable[[], None]) -> contextlib.ExitStack:
    """Call `on_end` in the running event loop, once, when our parent `pid` ends; soon, if it has ended.

    `pid` is what `os.getppid` said as we started.  Closing what this returns, once or more often, ends the
    watch.  Raises `OSError` if the system cannot watch a process, as Linux before 5.3.
    """
    loop = asyncio.get_running_loop()
    watch = contextlib.ExitStack()

    def ended() -> None:
        watch.close()
        on_end()

    try:
        descriptor = _open_process(pid, watch)
    except ProcessLookupError:
        alive = False
    else:
        loop.add_reader(descriptor, ended)
        watch.callback(loop.remove_reader, descriptor)
        # If we are its child now, the number was nobody else's when it was opened.
        alive = os.getppid() == pid
    if not alive:
        watch.callback(loop.call_soon(ended).cancel)
    return watch


def _open_process(pid: int, watch: contextlib.ExitStack) -> int:
    """A descriptor that is readable once `pid` has ended, closed with `watch`.

    Raises `OSError`, which is a `ProcessLookupError` if it has ended.
    """
    if hasattr(os, "pidfd_open"):  # Linux
        descriptor = os.pidfd_open(pid)
        watch.callback(os.close, descriptor)
        return descriptor
    queue = watch.enter_context(contextlib.closing(_BSD.kqueue()))
    event = _BSD.kevent(pid, _BSD.KQ_FILTER_PROC, _BSD.KQ_EV_ADD, _BSD.KQ_NOTE_EXIT)
    queue.control([event], 0)
    return int(queue.fileno())
