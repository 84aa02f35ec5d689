"""The devices that a command line names: DEVICE, `--busid`, `--hardware-id`.  Runs in the caller's process.

A device is named by its busid, by VID:PID with or without a serial number, or by part of its name.  Only a
name needs a lookup (`device_lookup.py`); the rest does not depend on what is plugged in.
"""

import argparse
import re
from typing import Final, NamedTuple, get_args

from usbipd.errors import UsageError
from usbipd.ipc.control_messages import HardwareId, Serial
from usbipd.usb.identity import parse_busid, parse_hardware_id

LONGEST_SERIAL: Final[int] = get_args(Serial)[1].max_length

_LIKE_A_BUSID: Final = re.compile(r"[0-9]+-[0-9.-]*")
_LIKE_A_HARDWARE_ID: Final = re.compile(r"(0x)?[0-9a-f]{1,4}:(0x)?[0-9a-f]{1,4}(:.*)?", re.IGNORECASE)


class Selector(NamedTuple):
    """Names a device; without `busid` and `hardware`, by part of its name."""

    text: str
    """As the user wrote it."""
    busid: str | None = None
    hardware: HardwareId | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def is_name(self) -> bool:
        """Whether it needs a lookup."""
        return self.busid is None and self.hardware is None


def parse_device(text: str) -> Selector:
    """Argument type: a busid, VID:PID, VID:PID:SERIAL, or part of a name.

    Raises `UsageError` for a malformed busid or hardware id.
    """
    if not text.strip():
        raise UsageError("the name of a device is empty", code="usage", advice=HOW_TO_NAME)
    if _LIKE_A_BUSID.fullmatch(text):
        return Selector(text, busid=parse_busid(text))
    if _LIKE_A_HARDWARE_ID.fullmatch(text):
        ids, _colon, number = text[:9], text[9:10], text[10:]
        if text[9:10] == ":":
            return Selector(text, hardware=_hardware(parse_hardware_id(ids), _serial_of(number)))
        return Selector(text, hardware=_hardware(parse_hardware_id(text), None))
    if not text.isprintable():  # as all names are: the others are shown with escapes
        raise UsageError(f"{text!r} has characters that no name has", code="usage", advice=HOW_TO_NAME)
    return Selector(text)


HOW_TO_NAME: Final = "name it by busid, VID:PID or part of its name: `usbipd list` shows them"


def add_device_arguments(
    parser: argparse.ArgumentParser, device: str, busid: str, hardware_id: str | None = None
) -> None:
    """`DEVICE...`, `--busid` and, if it has a help text, `--hardware-id` with `--serial`."""
    parser.add_argument("devices", metavar="DEVICE", nargs="*", type=parse_device, help=device)
    parser.add_argument("-b", "--busid", metavar="BUSID", type=_busid, help=busid)
    if hardware_id is None:
        return
    parser.add_argument("-i", "--hardware-id", metavar="VID:PID", type=parse_hardware_id, help=hardware_id)
    parser.add_argument(
        "--serial",
        metavar="SERIAL",
        type=serial,
        help="with --hardware-id: only the device with this serial number",
    )


def check_device_arguments(arguments: argparse.Namespace) -> None:
    """Raises `UsageError` if devices are named in two ways, or --serial stands alone."""
    hardware_id = getattr(arguments, "hardware_id", None)
    given = [
        name
        for name, value in (
            ("DEVICE", arguments.devices),
            ("--busid", arguments.busid),
            ("--hardware-id", hardware_id),
            ("--all", getattr(arguments, "all", False)),
        )
        if value
    ]
    if len(given) > 1:
        raise UsageError(
            f"{given[0]} and {given[1]} cannot be combined",
            code="usage",
            advice="list several devices without options: 1-1 3-2.4",
        )
    if getattr(arguments, "serial", None) is not None and hardware_id is None:
        raise UsageError(
            "--serial requires --hardware-id",
            code="usage",
            advice="or name the device by VID:PID:SERIAL",
        )


def selectors_of(arguments: argparse.Namespace) -> list[Selector]:
    """The devices that checked arguments name, each once."""
    if arguments.busid is not None:
        return [Selector(arguments.busid, busid=arguments.busid)]
    if getattr(arguments, "hardware_id", None) is not None:
        hardware = _hardware(arguments.hardware_id, arguments.serial)
        return [Selector(hardware_text(hardware), hardware=hardware)]
    return list(dict.fromkeys(arguments.devices))


def hardware_text(hardware: HardwareId) -> str:
    """The form of DEVICE."""
    ids = f"{hardware.vendor_id:04x}:{hardware.product_id:04x}"
    return ids if hardware.serial is None else f"{ids}:{hardware.serial}"


def serial(text: str) -> str:
    """Argument type: a serial number, as the device reports it."""
    if not 0 < len(text) <= LONGEST_SERIAL:
        raise argparse.ArgumentTypeError(f"a serial number has 1 to {LONGEST_SERIAL} characters")
    if not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has characters that no serial number has")
    return text


def _serial_of(text: str) -> str:
    try:
        return serial(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error), code="bad-serial", advice="to omit it, write VID:PID") from error


def _busid(text: str) -> str:
    try:
        return parse_busid(text)
    except UsageError as error:
        error.advice = "omit --busid to give part of a name: `usbipd list` shows both"
        raise


def _hardware(ids: tuple[int, int], number: str | None) -> HardwareId:
    return HardwareId(vendor_id=ids[0], product_id=ids[1], serial=number)
