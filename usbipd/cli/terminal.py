"""How large the terminal is.  Runs in the caller's process.

As shutil.get_terminal_size() has it, but shutil imports the libraries of three compressions.
"""

import os


def terminal_size() -> os.terminal_size:
    """Cells in a line and lines of the terminal, unless COLUMNS and LINES say otherwise.

    80 and 24 where stdout is none.
    """
    columns, lines = _number_in("COLUMNS"), _number_in("LINES")
    if not (columns and lines):
        try:
            found = os.get_terminal_size(1)
        except OSError:
            found = os.terminal_size((0, 0))
        columns = columns or found.columns or 80  # a terminal may say 0, if it does not know
        lines = lines or found.lines or 24
    return os.terminal_size((columns, lines))


def terminal_width() -> int:
    """Cells in a line of the terminal."""
    return terminal_size().columns


def _number_in(variable: str) -> int:
    """0 if there is none above 0."""
    try:
        return max(0, int(os.environ.get(variable, "0")))
    except ValueError:
        return 0
