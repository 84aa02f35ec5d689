"""Selects entries of the history: `--since WHEN`, `--device DEVICE`.

Runs in the caller's process.
"""

import argparse
import re
import time
from typing import Final, NamedTuple

from usbipd.cli.device import known_name
from usbipd.cli.device_arguments import Selector, parse_device
from usbipd.cli.device_lookup import is_part
from usbipd.ipc.control_messages import HistoryEntry

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds in each unit of a time span."""
_SPAN: Final = re.compile("([0-9]{1,9})([smhdw])")
_RIGHT: Final = "write 10m, 2h, 3d, today, 2026-12-01 or 2026-12-01T08:30"


def entry_name(entry: HistoryEntry) -> str:
    """The name of the device in the entry; "" if there is none."""
    if entry.vendor_id is None or entry.product_id is None:
        return entry.product or ""
    return known_name(entry.vendor_id, entry.product_id, entry.product) or ""


def is_about(selector: Selector, entry: HistoryEntry) -> bool:
    """Whether `selector` matches the device in the entry."""
    if selector.busid is not None:
        return entry.busid == selector.busid
    if selector.hardware is not None:
        ids = (selector.hardware.vendor_id, selector.hardware.product_id)
        return (entry.vendor_id, entry.product_id) == ids
    return is_part(selector.text, (entry_name(entry),))


class Selection(NamedTuple):
    """The entries since `since`, in seconds since the epoch, of devices that `device` matches; None: any."""

    since: float | None = None
    device: Selector | None = None

    def fits(self, entry: HistoryEntry) -> bool:
        """Whether the entry is selected."""
        return not self.is_older(entry) and (self.device is None or is_about(self.device, entry))

    def is_older(self, entry: HistoryEntry) -> bool:
        """Whether the entry precedes `since`."""
        return self.since is not None and entry.time < self.since


def device(text: str) -> Selector:
    """Argument type: as `parse_device`, but without a serial number."""
    selector = parse_device(text)
    if selector.hardware is not None and selector.hardware.serial is not None:
        raise argparse.ArgumentTypeError(f"{text!r}: the history has no serial numbers: write VID:PID")
    return selector


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: {_RIGHT}") from error
    if then > now:
        raise argparse.ArgumentTypeError(f"{text!r} is in the future: {_RIGHT}")
    return then
