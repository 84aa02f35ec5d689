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
"""The host controller of the stock USB/IP client."""


@dataclass(frozen=True)
class UsbDevice:
    """A plugged-in device, by busid."""

    busid: str

    @property
    def path(self) -> Path:
        """Its directory in sysfs, as a full path, which names its controller."""
        return _resolved(DEVICES / self.busid)

    @property
    def number(self) -> str:
        """Its address on the bus, which changes with each plug."""
        return _read(self.path / "devnum")

    @property
    def bus(self) -> str:
        """The number of its bus."""
        return _read(self.path / "busnum")

    @property
    def descriptors(self) -> bytes:
        """Its device descriptor and complete configuration descriptors."""
        return (self.path / "descriptors").read_bytes()

    def string(self, name: str) -> str:
        """Its `manufacturer`, `product` or `serial` as read by this kernel."""
        return _read(self.path / name)

    @property
    def hardware_id(self) -> str:
        """`VID:PID` in hexadecimal; ":" if the device has been removed."""
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
        """Whether the interfaces of its configuration 1 exist, whatever their numbers."""
        return any(DEVICES.glob(f"{self.busid}:1.*"))

    def driver(self, interface: int = 0) -> str | None:
        """The driver of an interface of configuration 1."""
        link = self.path / f"{self.busid}:1.{interface}" / "driver"
        return link.resolve().name if link.is_symlink() else None

    def block_device(self) -> Path | None:
        """The /dev/sdX of a disk, once its medium is detected and it can be opened."""
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
        """The /dev/videoN of a camera's pictures; uvcvideo has another for metadata."""
        return self._node("video4linux/video*", Path("/dev"), index="0")

    def _node(self, pattern: str, directory: Path, **attributes: str) -> Path | None:
        for path in self.path.glob(f"{self.busid}:*/{pattern}"):
            wanted = all(_read(path / name) == value for name, value in attributes.items())
            if wanted and (directory / path.name).exists():
                return directory / path.name
        return None


def find(controller: str, hardware_id: str) -> UsbDevice | None:
    """The device `VID:PID` on a bus of `controller`, once its interfaces exist."""
    for path in DEVICES.iterdir():
        if ":" not in path.name and f"/{controller}/" in str(_resolved(path)):
            device = UsbDevice(path.name)
            if device.hardware_id == hardware_id and device.is_configured:
                return device
    return None


def wait_until_plugged(controller: str, hardware_id: str) -> UsbDevice:
    """Like `find`, but waits.  Raises `StepError`."""
    return wait_for(f"device {hardware_id} on {controller}", lambda: find(controller, hardware_id))


def wait_until_unplugged(controller: str, hardware_id: str) -> None:
    """Wait until `find` finds nothing.  Raises `StepError`."""
    wait_for(f"no device {hardware_id} on {controller}", lambda: find(controller, hardware_id) is None)


def wait_for_driver(device: UsbDevice, name: str) -> None:
    """Wait until the driver `name` holds the device's first interface.  Raises `StepError`."""
    wait_for_drivers(device, [name])


def wait_for_drivers(device: UsbDevice, names: Sequence[str]) -> None:
    """Wait until the interfaces 0, 1 ... have the drivers `names`, ready for use.  Raises `StepError`."""

    def found() -> list[str | None]:
        return [device.driver(interface) for interface in range(len(names))]

    def ready() -> bool:
        # An interface shows its driver when the probe begins, and a keyboard loses keys during the probe.
        # The kernel holds the device's lock meanwhile, and answers this read afterwards
        # (drivers/usb/core/sysfs.c).
        _read(device.path / "bConfigurationValue")
        return found() == list(names)

    try:
        wait_for(f"{', '.join(names)} taking {device.busid}", lambda: found() == list(names) and ready())
    except StepError as error:
        raise StepError(f"{error}; it has {found()}") from None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except OSError:  # the link vanished meanwhile
        return path


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the device vanished meanwhile
        return ""
