"""The keys of a live view: bytes of a terminal in, keys out.  Runs in the caller's process."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

ESCAPE: Final = 0x1B
LONGEST_SEQUENCE: Final = 16
"""Bytes of an escape sequence that are kept; a longer one is skipped."""


class Key(Enum):
    """The keys of a live view."""

    UP = auto()
    DOWN = auto()
    PAGE_UP = auto()
    PAGE_DOWN = auto()
    HOME = auto()
    END = auto()
    QUIT = auto()


_PLAIN: Final[Mapping[int, Key]] = {ord("k"): Key.UP, ord("j"): Key.DOWN, ord("q"): Key.QUIT}

# CSI and SS3 sequences without their ESC: xterm's "PC-Style Function Keys" (ctlseqs) in both cursor modes,
# and the Home and End of the Linux console, screen and rxvt (terminfo: khome, kend).
_SEQUENCES: Final[Mapping[bytes, Key]] = {
    b"[A": Key.UP,
    b"OA": Key.UP,
    b"[B": Key.DOWN,
    b"OB": Key.DOWN,
    b"[5~": Key.PAGE_UP,
    b"[6~": Key.PAGE_DOWN,
    b"[H": Key.HOME,
    b"OH": Key.HOME,
    b"[1~": Key.HOME,
    b"[7~": Key.HOME,
    b"[F": Key.END,
    b"OF": Key.END,
    b"[4~": Key.END,
    b"[8~": Key.END,
}


class KeyReader:
    """Finds the keys in what a terminal sends, however it is split.  Never raises; keeps at most one
    sequence.

    Any other key is skipped with all its bytes.
    """

    def __init__(self) -> None:
        self._sequence = b""
        """What was received of an escape sequence after its ESC."""
        self._in_sequence = False

    def feed(self, data: bytes) -> list[Key]:
        """The keys that are complete with `data`."""
        found = (self._next(byte) for byte in data)
        return [key for key in found if key is not None]

    def _next(self, byte: int) -> Key | None:
        if byte == ESCAPE:
            self._in_sequence, self._sequence = True, b""
            return None
        if not self._in_sequence:
            return _PLAIN.get(byte)
        if not self._sequence and byte not in b"[O":  # Esc itself, then another key
            self._in_sequence = False
            return _PLAIN.get(byte)
        is_final = bool(self._sequence) and 0x40 <= byte <= 0x7E  # ECMA-48, 5.4
        if len(self._sequence) < LONGEST_SEQUENCE:
            self._sequence += bytes([byte])
        if not is_final:
            return None
        self._in_sequence = False
        return _SEQUENCES.get(self._sequence)
