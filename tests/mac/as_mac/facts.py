"""Paths of this Mac, which `machine.py` has written beside its interpreter.  Runs in processes of a Mac."""

import json
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(sys.prefix)
"""The directory of this Mac.  A process of it finds the directory whatever its environment."""

_FACTS: Final = json.loads((HERE / "facts.json").read_text())

LIBRARY: Final = Path(_FACTS["library"])
"""libusb over the software Mac."""
MODULES: Final = Path(_FACTS["modules"])
"""The compiled modules of usbipd that were built over that library."""
KERNEL: Final = _FACTS["kernel"]
"""The socket of this Mac's kernel."""
PROGRAMS: Final = HERE / "programs"
"""Programs of macOS by their names."""
MOUNTS: Final = HERE / "mounts"
"""The mount table, a JSON list of (source, mount point)."""
LAUNCH_DAEMON: Final = HERE / "org.usbipd.extension.plist"
MACOS_VERSION: Final = "15.4"
