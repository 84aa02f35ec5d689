"""Exit codes, as a shell would give them."""

import signal

from usbipd.errors import BROKEN_PIPE, INTERRUPTED


def test_what_a_shell_says_of_a_signal() -> None:
    assert (INTERRUPTED, BROKEN_PIPE) == (128 + signal.SIGINT, 128 + signal.SIGPIPE)
