"""Runs a command so that Ctrl-C reaches it alone: `foreground.py COMMAND...`.  Used by `make run`.

make dies of a SIGINT whatever its recipe answers.  So the command gets a process group of its own and the
terminal with it, as a shell would do; signals sent to us go on to it; its exit status is ours.  Ctrl-Z does
nothing: make knows no jobs, and would wait for ever for a command that is stopped.
"""

import os
import signal
import subprocess
import sys
from types import FrameType


def main() -> int:
    terminal = 0 if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp() else None
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # else taking the terminal back would stop us
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # the command inherits this
    child = subprocess.Popen(sys.argv[1:], process_group=0)  # noqa: S603 - the command is what we are for

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, forward)
    if terminal is not None:
        os.tcsetpgrp(terminal, child.pid)
    status = child.wait()
    if terminal is not None:
        os.tcsetpgrp(terminal, os.getpgrp())
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
