"""Exit codes, as a shell reports them."""

import signal

from usbipd.errors import BROKEN_PIPE, INTERRUPTED


def test_exit_codes_of_signals() -> None:
    assert (INTERRUPTED, BROKEN_PIPE) == (128 + signal.SIGINT, 128 + signal.SIGPIPE)
