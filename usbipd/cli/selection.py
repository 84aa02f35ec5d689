"""Which entries of the history are wanted: `--since WHEN`, `--device DEVICE`.

Runs in the caller's process.
"""

import argparse
import contextlib
import re
import time
from typing import Final, NamedTuple

from usbipd.cli.device import known_name
from usbipd.errors import UsageError
from usbipd.ipc.control_messages import HistoryEntry
from usbipd.usb.identity import parse_busid, parse_hardware_id

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds in each unit of a time span."""
_SPAN: Final = re.compile("([0-9]{1,9})([smhdw])")
_RIGHT: Final = "write 10m, 2h, 3d, today, 2026-12-01 or 2026-12-01T08:30"


def entry_name(entry: HistoryEntry) -> str:
    """The name of the device that the entry is about; "" if there is none."""
    if entry.vendor_id is None or entry.product_id is None:
        return entry.product or ""
    return known_name(entry.vendor_id, entry.product_id, entry.product) or ""


class DevicePattern(NamedTuple):
    """What a person calls a device: by exactly one of these."""

    busid: str | None = None
    hardware_id: tuple[int, int] | None = None
    name: str | None = None
    """Part of its name, in the form of `str.casefold`."""

    def fits(self, entry: HistoryEntry) -> bool:
        """Whether the entry is about such a device."""
        if self.busid is not None:
            return entry.busid == self.busid
        if self.hardware_id is not None:
            return (entry.vendor_id, entry.product_id) == self.hardware_id
        return self.name is not None and self.name in entry_name(entry).casefold()


class Selection(NamedTuple):
    """The entries since `since`, in seconds since the epoch, about devices that fit `device`; None: any."""

    since: float | None = None
    device: DevicePattern | None = None

    def fits(self, entry: HistoryEntry) -> bool:
        """Whether the entry is wanted."""
        return not self.is_older(entry) and (self.device is None or self.device.fits(entry))

    def is_older(self, entry: HistoryEntry) -> bool:
        """Whether the entry is from before `since`."""
        return self.since is not None and entry.time < self.since


def device_pattern(text: str) -> DevicePattern:
    """Argument type: a busid, VID:PID, or part of a device's name."""
    with contextlib.suppress(UsageError):
        return DevicePattern(busid=parse_busid(text))
    with contextlib.suppress(UsageError):
        return DevicePattern(hardware_id=parse_hardware_id(text))
    if not text.strip():
        raise argparse.ArgumentTypeError("the device is empty: write a busid, VID:PID or part of a name")
    return DevicePattern(name=text.strip().casefold())


def moment(text: str) -> float:
    """Argument type: a time span before now (`10m`), `today`, or an ISO 8601 date or time of this time zone.

    Seconds since the epoch.
    """
    now = time.time()
    if found := _SPAN.fullmatch(text):
        return max(0.0, now - int(found[1]) * _UNITS[found[2]])
    import datetime  # here: no other argument needs it

    try:
        if text == "today":
            then = datetime.datetime.combine(datetime.date.today(), datetime.time.min).timestamp()
        else:
            then = datetime.datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: {_RIGHT}") from error
    if then > now:
        raise argparse.ArgumentTypeError(f"{text!r} is in the future: {_RIGHT}")
    return then
