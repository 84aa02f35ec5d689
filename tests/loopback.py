"""Prints the loopback addresses that tests connect from, one per line.

macOS's loopback interface has only 127.0.0.1.  Tests that need more are skipped there unless you add them:

    .venv/bin/python tests/loopback.py | xargs -n 1 sudo ifconfig lo0 alias

`ifconfig lo0 -alias ADDRESS` removes one; a restart removes all.
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
"""For tests whose clients have separate addresses."""

if __name__ == "__main__":
    print("\n".join(ADDRESSES))
