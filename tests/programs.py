"""The program under test: the front door in this Python, or the executable that USBIPD_PROGRAM names."""

import os
import sys
from pathlib import Path
from typing import Final

EXECUTABLE: Final = Path(os.environ["USBIPD_PROGRAM"]).resolve() if os.environ.get("USBIPD_PROGRAM") else None
"""The file `usbipd`, with `usbipd-ext` beside it.  None: the package installed in this Python."""


def program(name: str) -> list[str]:
    """The command line that starts `usbipd` or `usbipd-ext`."""
    if EXECUTABLE is not None:
        return [str(EXECUTABLE.with_name(name))]
    enter = "from usbipd.__main__ import main; sys.exit(main())"
    return [sys.executable, "-c", f"import sys; sys.argv[0] = {name!r}; {enter}"]
