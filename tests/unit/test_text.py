"""Untrusted text: none of it controls the terminal, and all of it can be sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.text import readable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Müller's stick", "Müller's stick"),
        (" a b ", " a b "),
        ("\x1b[2Ja\nb", "\\x1b[2Ja\\nb"),
        ("\u202e\u2028\U000e0001", "\\u202e\\u2028\\U000e0001"),
        ("\udcff", "\\udcff"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (b"", ""),
    ],
)
def test_examples(name: str | bytes, text: str) -> None:
    assert readable(name) == text


@given(st.text() | st.binary())
def test_any_name_can_be_shown_and_sent(name: str | bytes) -> None:
    text = readable(name)
    assert text.isprintable()
    text.encode()
    assert readable(text) == text


@given(st.text(max_size=40), st.integers(1, 20))
def test_no_text_is_longer_than_its_bound(name: str, longest: int) -> None:
    text = readable(name, longest)
    assert text.isprintable()
    assert text == (whole if len(whole := readable(name)) <= longest else whole[: longest - 1] + "…")
