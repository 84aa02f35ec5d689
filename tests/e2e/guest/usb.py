"""USB devices as sysfs shows them.  Runs in the guest."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.guest.scenario import StepError
from tests.e2e.guest.system import wait_for

DEVICES: Final = Path("/sys/bus/usb/devices")

CLIENT: Final = "vhci_hcd.0"
"""The host controller on which devices of the stock USB/IP client appear."""


@dataclass(frozen=True)
class UsbDevice:
    """A device that is plugged in, by its busid."""

    busid: str

    @property
    def path(self) -> Path:
        """Its directory in sysfs, by the whole path, which names its controller."""
        return _resolved(DEVICES / self.busid)

    @property
    def number(self) -> str:
        """Its address on the bus: another one each time it is plugged in."""
        return _read(self.path / "devnum")

    @property
    def bus(self) -> str:
        """The number of its bus."""
        return _read(self.path / "busnum")

    @property
    def descriptors(self) -> bytes:
        """Its device descriptor, and its configurations with all that is in them."""
        return (self.path / "descriptors").read_bytes()

    def string(self, name: str) -> str:
        """Its `manufacturer`, `product` or `serial` as this kernel has read it."""
        return _read(self.path / name)

    @property
    def hardware_id(self) -> str:
        """`VID:PID` in hexadecimal; ":" if the device is gone."""
        return f"{_read(self.path / 'idVendor')}:{_read(self.path / 'idProduct')}"

    @property
    def speed(self) -> str:
        """In Mbit/s: 12 is full speed, 480 high speed, 5000 super speed."""
        return _read(self.path / "speed")

    @property
    def node(self) -> Path:
        """Its device in usbfs."""
        return Path(f"/dev/bus/usb/{int(self.bus):03}/{int(self.number):03}")

    @property
    def is_configured(self) -> bool:
        """Whether the interfaces of its configuration 1 are there, whatever their numbers are."""
        return any(DEVICES.glob(f"{self.busid}:1.*"))

    def driver(self, interface: int = 0) -> str | None:
        """The name of the driver that holds an interface of the configuration 1."""
        link = self.path / f"{self.busid}:1.{interface}" / "driver"
        return link.resolve().name if link.is_symlink() else None

    def block_device(self) -> Path | None:
        """The /dev/sdX of a disk, once its medium has been seen and it can be opened."""
        for path in self.path.glob(f"{self.busid}:*/host*/target*/*/block/sd*"):
            node = Path("/dev") / path.name
            if _read(path / "size") not in ("", "0"):
                with suppress(OSError), node.open("rb"):
                    return node
        return None

    def tty(self) -> Path | None:
        """The /dev/ttyACMn of a serial port."""
        return self._node("tty/tty*", Path("/dev"))

    def event_device(self) -> Path | None:
        """The /dev/input/eventN of a keyboard."""
        return self._node("*/input/input*/event*", Path("/dev/input"))

    def capture_device(self) -> Path | None:
        """The /dev/snd/pcmCnD0c of a sound card n that can record."""
        return self._node("sound/card*/pcmC*D0c", Path("/dev/snd"))

    def playback_device(self) -> Path | None:
        """The /dev/snd/pcmCnD0p of a sound card n that can play."""
        return self._node("sound/card*/pcmC*D0p", Path("/dev/snd"))

    def video_device(self) -> Path | None:
        """The /dev/videoN of a camera's pictures; what uvcvideo tells about them has another one."""
        return self._node("video4linux/video*", Path("/dev"), index="0")

    def _node(self, pattern: str, directory: Path, **attributes: str) -> Path | None:
        for path in self.path.glob(f"{self.busid}:*/{pattern}"):
            wanted = all(_read(path / name) == value for name, value in attributes.items())
            if wanted and (directory / path.name).exists():
                return directory / path.name
        return None


def find(controller: str, hardware_id: str) -> UsbDevice | None:
    """The device `VID:PID` on a bus of `controller`, once its interfaces are there."""
    for path in DEVICES.iterdir():
        if ":" not in path.name and f"/{controller}/" in str(_resolved(path)):
            device = UsbDevice(path.name)
            if device.hardware_id == hardware_id and device.is_configured:
                return device
    return None


def wait_until_plugged(controller: str, hardware_id: str) -> UsbDevice:
    """As `find`, waiting.  Raises `StepError`."""
    return wait_for(f"device {hardware_id} on {controller}", lambda: find(controller, hardware_id))


def wait_until_unplugged(controller: str, hardware_id: str) -> None:
    """Until `find` finds nothing.  Raises `StepError`."""
    wait_for(f"no device {hardware_id} on {controller}", lambda: find(controller, hardware_id) is None)


def wait_for_driver(device: UsbDevice, name: str) -> None:
    """Until the driver `name` has the device's first interface.  Raises `StepError`."""
    wait_for_drivers(device, [name])


def wait_for_drivers(device: UsbDevice, names: Sequence[str]) -> None:
    """Until the interfaces 0, 1 ... have the drivers `names`, and those are ready.  Raises `StepError`."""

    def found() -> list[str | None]:
        return [device.driver(interface) for interface in range(len(names))]

    def ready() -> bool:
        # An interface names its driver when the probe begins, and a keyboard whose probe goes on loses keys.
        # The kernel has the device locked meanwhile, and answers this after it (drivers/usb/core/sysfs.c).
        _read(device.path / "bConfigurationValue")
        return found() == list(names)

    try:
        wait_for(f"{', '.join(names)} taking {device.busid}", lambda: found() == list(names) and ready())
    except StepError as error:
        raise StepError(f"{error}; it is with {found()}") from None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except OSError:  # the link went away meanwhile
        return path


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the device went away meanwhile
        return ""
