"""Real USB devices by software: configfs gadgets on dummy_hcd's device side.  Runs in the guest.

What is plugged in here appears on a bus of dummy_hcd like any device, and a driver of the host takes it.
"""

from pathlib import Path
from typing import Final

GADGETS: Final = Path("/sys/kernel/config/usb_gadget")
UDC: Final = "dummy_udc.0"


MASS_STORAGE: Final = "1d6b:0104"  # Linux Foundation


def plug_mass_storage(backing: Path) -> None:
    """A high-speed USB stick with one bulk-only disk, whose blocks are the file `backing`."""
    gadget = GADGETS / "stick"
    vendor, _, product = MASS_STORAGE.partition(":")
    _directory(
        gadget,
        idVendor=f"0x{vendor}",
        idProduct=f"0x{product}",
        bcdDevice="0x0100",
        bcdUSB="0x0200",
        max_speed="high-speed",
    )
    _directory(
        gadget / "strings" / "0x409", manufacturer="Acme", product="Stick", serialnumber="E2E000000001"
    )
    configuration = gadget / "configs" / "c.1"
    _directory(configuration, MaxPower="120")
    function = gadget / "functions" / "mass_storage.0"
    # Attributes come before the link: what is in a configuration cannot be changed any more.
    _directory(function)
    _write(function / "lun.0", removable="1", file=str(backing))
    (configuration / function.name).symlink_to(function)
    _write(gadget, UDC=UDC)


def unplug_mass_storage() -> None:
    """Pulls the stick out, whatever uses it."""
    _write(GADGETS / "stick", UDC="")


def _directory(path: Path, **attributes: str) -> None:
    """A new object of configfs.  The kernel fills it with its attributes."""
    path.mkdir()
    _write(path, **attributes)


def _write(path: Path, **attributes: str) -> None:
    for name, value in attributes.items():
        (path / name).write_text(value + "\n")
