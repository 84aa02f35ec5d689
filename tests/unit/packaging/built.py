"""Names of the files that make builds for the packages of both systems.  Tests use other files instead."""

from typing import Final

BUILT: Final = (
    "usbipd",
    *("usbipd.1", "usbipd-ext.8", "usbipd.toml.5"),
    *("usbipd.bash", "_usbipd", "usbipd.fish"),
)
"""Executable, manual pages, completions."""
