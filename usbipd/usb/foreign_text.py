"""Names that devices, programs and other people chose, made fit to be shown and sent.  Runs in the extension
and in the CLI."""


def readable(name: str | bytes) -> str:
    r"""`name` on one line, without anything that a terminal would obey.

    What cannot be printed, or is no UTF-8, stands as an escape: `\x1b`.
    """
    text = name.decode("utf-8", errors="backslashreplace") if isinstance(name, bytes) else name
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
