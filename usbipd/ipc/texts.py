"""Cleans the texts in received messages.  Used by the extension and by commands.

The extension cleans messages of its children and of local users, a command cleans answers of the extension.
Messages from the extension to its children stay unchanged: a path in them must still name the same file.
"""

from typing import Any, Final, TypeVar

import msgspec

from usbipd.text import readable

LONGEST_TEXT: Final = 1000
"""Characters of one text; longer ones are truncated."""

Value = TypeVar("Value")


def clean_texts(value: Value) -> Value:
    """`value`, a message or a part of one, with each text made one printable line of bounded length."""
    cleaned: Value = _clean(value)
    return cleaned


def _clean(value: Any) -> Any:
    kind = type(value)
    if kind is str:  # not a StrEnum, whose values are our own
        return readable(value, LONGEST_TEXT)
    if isinstance(value, msgspec.Struct):
        before = {name: getattr(value, name) for name in value.__struct_fields__}
        changed = {name: new for name, old in before.items() if (new := _clean(old)) is not old}
        return msgspec.structs.replace(value, **changed) if changed else value
    if kind in (list, tuple):
        return kind(map(_clean, value))
    if kind is dict:
        return {_clean(key): _clean(each) for key, each in value.items()}
    return value
