"""Golden vectors: one file a message, one field a line, a distinct value in every byte that is free.

A line is bytes in hexadecimal and a comment; `00*27` is a byte 27 times.  The URB vectors serve both codecs,
the Python one and the Cython one.

`cli/` has the texts that commands print: see `tests/unit/cli/golden.py`.
"""

from functools import cache
from pathlib import Path

DIRECTORY = Path(__file__).parent


@cache
def load(name: str) -> bytes:
    """The bytes of the vector `name`."""
    message = b""
    for line in (DIRECTORY / f"{name}.hex").read_text().splitlines():
        for token in line.partition("#")[0].split():
            byte, _, count = token.partition("*")
            message += bytes.fromhex(byte) * int(count or 1)
    return message


def names(prefix: str) -> list[str]:
    """The names of all vectors that begin with `prefix`."""
    return sorted(path.stem for path in DIRECTORY.glob(f"{prefix}*.hex"))
