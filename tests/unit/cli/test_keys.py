"""The keys that a terminal sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.cli.keys import LONGEST_SEQUENCE, Key, KeyReader

KEYS = [
    (b"\x1b[A", Key.UP),
    (b"\x1bOA", Key.UP),
    (b"k", Key.UP),
    (b"\x1b[B", Key.DOWN),
    (b"\x1bOB", Key.DOWN),
    (b"j", Key.DOWN),
    (b"\x1b[5~", Key.PAGE_UP),
    (b"\x1b[6~", Key.PAGE_DOWN),
    (b"\x1b[H", Key.HOME),
    (b"\x1bOH", Key.HOME),
    (b"\x1b[1~", Key.HOME),
    (b"\x1b[7~", Key.HOME),
    (b"\x1b[F", Key.END),
    (b"\x1bOF", Key.END),
    (b"\x1b[4~", Key.END),
    (b"\x1b[8~", Key.END),
    (b"q", Key.QUIT),
]


@pytest.mark.parametrize(("data", "key"), KEYS)
def test_a_key_whole_byte_by_byte_and_before_another(data: bytes, key: Key) -> None:
    assert KeyReader().feed(data) == [key]
    reader = KeyReader()
    assert [reader.feed(bytes([byte])) for byte in data] == [[]] * (len(data) - 1) + [[key]]
    assert KeyReader().feed(data + b"q") == [key, Key.QUIT]


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"Q",
        b"\x03",
        b"\x1b[1;5A",
        b"\x1b[15~",
        b"\x1bOP",
        b"\x1b[2~",
        b"\xc3\xa4",
        b"\x1b[" + b"1" * 99 + b"~",
    ],
)
def test_unknown_key_is_skipped_whole(data: bytes) -> None:
    assert KeyReader().feed(data + b"j") == [Key.DOWN]


def test_escape_alone_does_not_consume_the_next_key() -> None:
    assert KeyReader().feed(b"\x1bq") == [Key.QUIT]
    assert KeyReader().feed(b"\x1b\x1b[A") == [Key.UP]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_bytes_are_keys_or_nothing_in_bounded_memory(parts: list[bytes]) -> None:
    reader = KeyReader()
    found = [key for part in parts for key in reader.feed(part)]
    assert found == KeyReader().feed(b"".join(parts))
    assert len(reader._sequence) <= LONGEST_SEQUENCE
