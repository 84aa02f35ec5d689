"""Addresses of the loopback interface that tests connect from, one a line.

The loopback interface of macOS has 127.0.0.1 alone.  Tests that need more are skipped there unless they are
added:

    .venv/bin/python tests/loopback.py | xargs -n 1 sudo ifconfig lo0 alias

`ifconfig lo0 -alias ADDRESS` removes one, a restart all.
"""

import socket
from typing import Final

import pytest

FLOOD: Final = [f"127.9.{number // 100}.{number % 100 + 1}" for number in range(300)]
"""For a flood from many addresses."""
ADDRESSES: Final = [
    *(f"127.0.0.{number}" for number in (*range(2, 18), 77)),
    *("127.0.1.1", "127.0.1.77", "127.0.1.255", "127.0.2.0", "127.0.2.1", "127.9.9.9"),
    *FLOOD,
]


def is_local(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


from_other_addresses = pytest.mark.skipif(
    not all(map(is_local, ADDRESSES)), reason="127.0.0.1 is the only loopback address (tests/loopback.py)"
)
"""For tests whose clients have addresses of their own."""

if __name__ == "__main__":
    print("\n".join(ADDRESSES))
