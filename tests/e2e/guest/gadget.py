"""Real USB devices in software: configfs gadgets on dummy_hcd's device side.  Runs in the guest.

A gadget appears on a bus of dummy_hcd like any device, and a driver of the host claims it.  The machine has
two ports, 0 and 1, each with separate buses for high speed and super speed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.guest.usb import UsbDevice, wait_until_plugged, wait_until_unplugged

GADGETS: Final = Path("/sys/kernel/config/usb_gadget")

MASS_STORAGE: Final = "1d6b:0104"  # Linux Foundation


@dataclass(frozen=True)
class Function:
    """A gadget's function: a function driver, its attributes, and a name for this instance."""

    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    instance: str = "0"


def disk(backing: Path, size: int | None = None) -> Function:
    """A bulk-only disk backed by the file `backing`, which is created empty if `size` is given."""
    if size is not None:
        with backing.open("wb") as file:
            file.truncate(size)
    return Function("mass_storage", {"lun.0/removable": "1", "lun.0/file": str(backing)})


LOOPBACK: Final = Function("Loopback")
"""Returns what it receives.  This kernel has no driver for it, unless usbtest is loaded."""

SOURCE_SINK: Final = Function("SourceSink", {"pattern": "1"})  # 1: byte i of each packet is i % 63
"""Sends a pattern, and stalls when it receives a different one."""

SERIAL_PORT: Final = Function("acm")
"""A CDC-ACM port; the device's end is `Gadget.serial_port`."""

KEYBOARD: Final = Function(
    "hid",
    {
        "protocol": "1",  # HID 1.11, 4.3: keyboard
        "subclass": "1",  # HID 1.11, 4.2: boot interface
        "report_length": "8",
        "report_desc": (
            # HID 1.11, appendix B.1: a byte of modifiers, a reserved byte ...
            "05 01 09 06 a1 01 05 07 19 e0 29 e7 15 00 25 01 75 01 95 08 81 02 95 01 75 08 81 01 "
            # ... five LEDs in a byte from the host ...
            "95 05 75 01 05 08 19 01 29 05 91 02 95 01 75 03 91 01 "
            # ... and six pressed keys
            "95 06 75 08 15 00 25 65 05 07 19 00 29 65 81 00 c0"
        ),
    },
)
"""A boot keyboard with LEDs; the device's end is `Gadget.keyboard`."""


class Gadget:
    """A device that can be plugged into one port, unplugged, and turned into a different device."""

    def __init__(
        self,
        *functions: Function,
        port: int = 0,
        hardware_id: str = MASS_STORAGE,
        product: str = "Stick",
        serial: str | None = None,
        speed: str = "high-speed",
        second: Function | None = None,
    ) -> None:
        """A device with all of `functions` in its configuration 1.

        A gadget left at this port is unplugged and removed.  `speed` is `super-speed`, `high-speed` or
        `full-speed`; `second` is the function of its optional configuration 2.
        """
        self._path = GADGETS / f"port{port}"
        self._udc = f"dummy_udc.{port}"
        self._controller = f"dummy_hcd.{port}"
        if self._path.exists():
            self.remove()
        version = "0x0320" if speed == "super-speed" else "0x0200"
        _directory(self._path, bcdDevice="0x0100", bcdUSB=version, max_speed=speed)
        self.become(hardware_id)
        strings = {"manufacturer": "Acme", "product": product}
        if serial is not None:  # without one, the device stalls requests for it
            strings["serialnumber"] = serial
        _directory(self._path / "strings" / "0x409", **strings)
        contents = [functions] if second is None else [functions, (second,)]
        for value, each in enumerate(contents, 1):
            configuration = self._path / "configs" / f"c.{value}"
            _directory(configuration, MaxPower="120")
            for function in each:
                # Attributes first: a linked function can no longer be changed.
                path = self._path / "functions" / f"{function.name}.{function.instance}"
                _directory(path, **function.attributes)
                (configuration / path.name).symlink_to(path)

    @property
    def serial_port(self) -> Path:
        """The device's end of SERIAL_PORT."""
        return Path(f"/dev/ttyGS{(self._path / 'functions/acm.0/port_num').read_text().strip()}")

    @property
    def keyboard(self) -> Path:
        """The device's end of KEYBOARD: write reports, read LEDs."""
        return Path(f"/dev/hidg{(self._path / 'functions/hid.0/dev').read_text().strip().partition(':')[2]}")

    def become(self, hardware_id: str) -> None:
        """Be a different device when plugged in next, like a bootloader that has started a program."""
        self.hardware_id = hardware_id
        vendor, _, product = hardware_id.partition(":")
        _write(self._path, idVendor=f"0x{vendor}", idProduct=f"0x{product}")

    def plug(self) -> None:
        """Plug it in."""
        _write(self._path, UDC=self._udc)

    def unplug(self) -> None:
        """Unplug it, even if in use."""
        _write(self._path, UDC="")

    def wait_until_plugged(self) -> UsbDevice:
        """The device on this host, once its interfaces exist."""
        return wait_until_plugged(self._controller, self.hardware_id)

    def wait_until_unplugged(self) -> None:
        """Wait until this host has noticed."""
        wait_until_unplugged(self._controller, self.hardware_id)

    def remove(self) -> None:
        """Free this port, unplugging the gadget if necessary."""
        if (self._path / "UDC").read_text().strip():
            self.unplug()
        for link in self._path.glob("configs/*/*"):
            if link.is_symlink():
                link.unlink()
        for pattern in ("configs/*", "functions/*", "strings/*"):
            for directory in self._path.glob(pattern):
                directory.rmdir()
        self._path.rmdir()


def _directory(path: Path, **attributes: str) -> None:
    """Create a configfs object.  The kernel adds its attributes."""
    path.mkdir()
    _write(path, **attributes)


def _write(path: Path, **attributes: str) -> None:
    for name, value in attributes.items():
        if name == "report_desc":  # the only binary attribute
            (path / name).write_bytes(bytes.fromhex(value))
        else:
            (path / name).write_text(value + "\n")
