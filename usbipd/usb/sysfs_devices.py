"""The USB devices that Linux shows in sysfs.  Runs in the extension, in a thread.

libusb is not asked: it reads `descriptors`, which before Linux 6.3 takes the device's lock, so that one stuck
device hangs the list of all (drivers/usb/core/sysfs.c).  It also leaves out devices whose descriptors it
refuses.  What is read here takes no lock, except for strings and descriptors, which are read once, in a
thread for each device.
"""

import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import USB_CLASS_HUB, Speed
from usbipd.usb.device_strings import DeviceStrings, strings_in_sysfs
from usbipd.usb.discovery import HUB, DeviceRecord, Listing
from usbipd.usb.sysfs_descriptors import why_not_claimable

SYSFS: Final = Path("/sys")
IMPORTED: Final = "/vhci_hcd."  # in the path of a device on a virtual bus: drivers/usb/usbip/vhci_hcd.c

ANSWER_TIME: Final = 0.5
"""Seconds that strings and descriptors of a device may take to be read; one that needs longer is left out
until then."""
MOST_WAITING: Final = 16
"""Devices whose answer is waited for at one moment, with a thread each; more are left out unread."""

_BUSID: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")  # drivers/usb/core/usb.c, usb_alloc_dev
_SPEEDS: Final = {"1.5": Speed.LOW, "12": Speed.FULL, "480": Speed.HIGH}
"""In Mbit/s, as speed_show in drivers/usb/core/sysfs.c has them; a larger number is super speed."""

_IMPORTED_ERROR: Final = UsbipdError(
    "it is imported from another host, and sharing it again could make two hosts re-export it to each other",
    code="imported",
    advice="`offer_imported = true` in usbipd.toml offers it all the same",
)
_STUCK_ERROR: Final = UsbipdError(
    "it is plugged in, but the kernel has not answered yet: a driver or the device itself keeps it waiting",
    code="no-answer",
    advice="wait a few seconds; if that does not help, plug the device in again",
)

_Plugging = tuple[int, int, int]
"""devnum, idVendor, idProduct: what a port has.  devnum is new whenever a device is enumerated (choose_devnum
in drivers/usb/core/hub.c), also one whose serial number changed in a reset (descriptors_changed)."""


class SysfsDevices:
    """As `HostDevices`.  `sysfs` is for tests."""

    def __init__(self, *, offer_imported: bool, sysfs: Path = SYSFS) -> None:
        self._sysfs = sysfs
        self._directory = sysfs / "bus/usb/devices"  # Linux Documentation/ABI/testing/sysfs-bus-usb
        self._offer_imported = offer_imported
        self._answers = _AnswerReader()

    def notify(self, on_late: Callable[[], None]) -> None:
        """As in `HostDevices`."""
        self._answers.on_late = on_late

    def list_all(self) -> Listing:
        """As in `HostDevices`: milliseconds, and once `ANSWER_TIME` for each device that is stuck.

        Raises `UsbipdError` where sysfs is not mounted.
        """
        devices, left_out = [], {}
        for busid in self._busids():
            try:
                found = self._describe(busid)
            except (OSError, ValueError):  # unplugged while it was looked at
                continue
            if isinstance(found, DeviceRecord):
                devices.append(found)
            else:
                left_out[busid] = found
        stuck = sorted(busid for busid, error in left_out.items() if error is _STUCK_ERROR)
        self._answers.keep({device.busid for device in devices}.union(left_out))
        unanswered = (
            f"the kernel does not answer about {', '.join(stuck)}, which "
            f"{'is' if len(stuck) == 1 else 'are'} left out until it does"
        )
        return Listing(devices, left_out, unanswered if stuck else None)

    def _busids(self) -> list[str]:
        try:
            return [path.name for path in self._directory.iterdir() if _BUSID.fullmatch(path.name)]
        except OSError as error:
            if (self._sysfs / "bus").is_dir():
                return []  # a kernel without USB
            raise UsbipdError(
                f"real devices cannot be listed: {self._directory}: {error.strerror}",
                code="no-sysfs",
                advice=f"mount sysfs: mount -t sysfs sysfs {self._sysfs}",
            ) from error

    def _describe(self, busid: str) -> DeviceRecord | UsbipdError:
        """The device, or why it cannot be shared.  Raises `OSError` or `ValueError` if it is going away."""
        directory = (self._directory / busid).resolve(strict=True)

        def number(name: str, base: int) -> int:
            return int((directory / name).read_text(), base)

        if (device_class := number("bDeviceClass", 16)) == USB_CLASS_HUB:
            return HUB
        if IMPORTED in str(directory) and not self._offer_imported:
            return _IMPORTED_ERROR
        vendor_id, product_id = number("idVendor", 16), number("idProduct", 16)
        devnum = number("devnum", 10)
        # In a reset, which locks the device, it has no address; it is looked at again (discovery.py)
        answer = (
            _NO_ANSWER if devnum == 0 else self._answers.of(busid, (devnum, vendor_id, product_id), directory)
        )
        if answer is None:
            return _STUCK_ERROR
        if answer.problem is not None:
            return answer.problem
        return DeviceRecord(
            busid=busid,
            busnum=number("busnum", 10),
            devnum=devnum,
            path=str(directory),
            vendor_id=vendor_id,
            product_id=product_id,
            serial=answer.strings.serial,
            device_class=device_class,
            speed=_speed((directory / "speed").read_text().strip()),
            manufacturer=answer.strings.manufacturer,
            product=answer.strings.product,
        )


def _speed(text: str) -> Speed:
    """`unknown`, the only one that is no number, counts as full speed, as with libusb."""
    return _SPEEDS.get(text, Speed.SUPER if text.isdigit() else Speed.FULL)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What is read of a device with its lock."""

    strings: DeviceStrings
    problem: UsbipdError | None
    """Why it cannot be shared."""


_NO_ANSWER: Final = _Answer(DeviceStrings(), None)


class _AnswerReader:
    """The answers of devices, each read once: that takes the device's lock, which the kernel holds while a
    driver probes the device, and while a device that does not answer is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[_Plugging, _Answer]] = {}
        """By busid."""
        self._waiting: set[tuple[str, _Plugging]] = set()
        """Those that have not been read in time and are still being read."""
        self.on_late: Callable[[], None] = lambda: None

    def of(self, busid: str, plugging: _Plugging, directory: Path) -> _Answer | None:
        """The answer of the device in `directory`; None: it cannot be read now."""
        with self._lock:
            if (answer := self._answer(busid, plugging)) is not None:
                return answer
            if (busid, plugging) in self._waiting or len(self._waiting) >= MOST_WAITING:
                return None
        has_ended = threading.Event()
        reading = threading.Thread(
            target=self._read, args=(busid, plugging, directory, has_ended), name="usb-answer", daemon=True
        )
        reading.start()
        reading.join(ANSWER_TIME)
        with self._lock:
            if not has_ended.is_set():
                self._waiting.add((busid, plugging))
            # none also if a late answer about the device before this one has taken their place since
            return self._answer(busid, plugging)

    def keep(self, busids: Collection[str]) -> None:
        """Forget all devices but those at `busids`."""
        with self._lock:
            self._known = {busid: known for busid, known in self._known.items() if busid in busids}

    def _answer(self, busid: str, plugging: _Plugging) -> _Answer | None:
        known, answer = self._known.get(busid, (None, None))
        return answer if known == plugging else None

    def _read(self, busid: str, plugging: _Plugging, directory: Path, has_ended: threading.Event) -> None:
        answer = None
        try:
            answer = _Answer(strings_in_sysfs(directory), _problem(directory))
        finally:
            with self._lock:
                has_ended.set()
                if answer is not None:
                    self._known[busid] = plugging, answer
                is_late = (busid, plugging) in self._waiting
                self._waiting.discard((busid, plugging))
        if is_late:
            self.on_late()


def _problem(directory: Path) -> UsbipdError | None:
    try:
        return why_not_claimable(str(directory))
    except OSError:  # it is being removed: so the next list finds
        return None
