"""Text that others chose, made fit to be shown, logged and sent.  Used by every process.

It is cleaned once, where it enters: in what a less trusted peer sends (`ipc/texts.py`), in what devices, file
systems and other programs are called (`usb/`), and in what a server of the network tells (`protocol/op.py`).
Whatever prints it may then do so as it is.  The log cleans its lines besides: they may hold anything.
"""

from typing import Final

ELLIPSIS: Final = "…"


def readable(text: str | bytes, longest: int | None = None) -> str:
    r"""`text` on one line, without anything that a terminal obeys, in at most `longest` characters.

    What cannot be printed (line ends, control and format characters, such as those that change the direction
    of writing) or is not UTF-8 stands as an escape: `\x1b`.  Cleaning twice changes nothing more.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="backslashreplace")
    if longest is not None:
        text = text[: longest + 1]  # what is cut below costs nothing
    if not text.isprintable():
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + ELLIPSIS
    return text
