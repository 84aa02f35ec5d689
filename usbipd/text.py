"""Makes untrusted text safe to print, log and send.  Used by every process.

Text is cleaned once, on entry: messages of a less trusted peer in `ipc/texts.py`; names of devices, file
systems and programs in `usb/`; replies of a remote USB/IP server in `protocol/op.py`; names from usb.ids in
`cli/usb_ids.py`.  Code that prints it does not clean it again.  Only the log and `cli/output.py` do,
since they may quote anything.
"""

from typing import Final

ELLIPSIS: Final = "…"


def readable(text: str | bytes, longest: int | None = None) -> str:
    r"""`text` on one line, printable, in at most `longest` characters.

    Everything else (line ends, control and format characters, bidirectional overrides, bytes that are not
    UTF-8) becomes an escape such as `\x1b`.  Idempotent.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="backslashreplace")
    if longest is not None:
        text = text[: longest + 1]  # do not escape what is cut below
    if not text.isprintable():
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + ELLIPSIS
    return text
