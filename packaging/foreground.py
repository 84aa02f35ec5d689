"""Runs a command so that Ctrl-C reaches it alone: `foreground.py COMMAND...`.  Used by `make run`.

SIGINT kills make whatever its recipe returns.  So the command gets a separate process group and the terminal,
as from a shell; we forward signals to it and exit with its status.  Ctrl-Z does nothing: make has no job
control, and would wait forever for a stopped command.

When the terminal is closed or make dies, the command gets SIGTERM.  The kernel sends SIGHUP only to the
session leader; if that is make, it just waits for us.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from types import FrameType

from usbipd.frozen import end_with


def end_with_terminal(terminal: int) -> None:
    """Wait until the terminal is closed, then send SIGTERM to this process."""
    poll = select.poll()
    poll.register(terminal, 0)  # hangup only: input belongs to the command
    [(_descriptor, events)] = poll.poll()
    if events & select.POLLHUP:  # otherwise the system cannot watch it
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    terminal = 0 if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp() else None
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else regaining the terminal would stop us
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the command inherits this
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, forward)
    child = subprocess.Popen(sys.argv[1:], process_group=0)  # noqa: S603 - running the command is our purpose
    for number in early:
        child.send_signal(number)
    if terminal is not None:
        os.tcsetpgrp(terminal, child.pid)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    for descriptor in filter(os.isatty, range(3)):
        threading.Thread(target=end_with_terminal, args=(descriptor,), daemon=True).start()
    status = child.wait()
    if terminal is not None:
        with contextlib.suppress(OSError):  # the terminal is closed
            os.tcsetpgrp(terminal, os.getpgrp())
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
