"""What make builds for the packages of both systems, by name.  Tests have files of their own in its place."""

from typing import Final

BUILT: Final = (
    "usbipd",
    *("usbipd.1", "usbipd-ext.8", "usbipd.toml.5"),
    *("usbipd.bash", "_usbipd", "usbipd.fish"),
)
"""Executable, manual pages, completions."""
