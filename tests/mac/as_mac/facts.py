"""Paths of this Mac, which `machine.py` wrote beside its interpreter.  Runs in processes of a Mac."""

import json
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(sys.prefix)
"""The directory of this Mac, found without the environment."""

_FACTS: Final = json.loads((HERE / "facts.json").read_text())

LIBRARY: Final = Path(_FACTS["library"])
"""libusb on the software Mac."""
MODULES: Final = Path(_FACTS["modules"])
"""usbipd's compiled modules for that library."""
KERNEL: Final = _FACTS["kernel"]
"""The socket of this Mac's kernel."""
PROGRAMS: Final = HERE / "programs"
"""Programs of macOS by name."""
MOUNTS: Final = HERE / "mounts"
"""The mount table, a JSON list of (source, mount point)."""
LAUNCH_DAEMON: Final = HERE / "org.usbipd.extension.plist"
MACOS_VERSION: Final = "15.4"
