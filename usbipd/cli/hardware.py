"""`--hardware-id` and `--serial`: devices by what they are, in any port.  Runs in the caller's process."""

import argparse
from typing import Final, get_args

from usbipd.errors import UsageError
from usbipd.ipc.control_messages import HardwareId, Serial
from usbipd.usb.identity import parse_hardware_id

LONGEST_SERIAL: Final[int] = get_args(Serial)[1].max_length


def add_hardware_arguments(
    parser: argparse.ArgumentParser, which: argparse._MutuallyExclusiveGroup, what: str
) -> None:
    """`--hardware-id VID:PID`, one of `which`, and `--serial S`; `what` is the help of the first."""
    which.add_argument("--hardware-id", metavar="VID:PID", type=parse_hardware_id, help=what)
    parser.add_argument(
        "--serial",
        metavar="SERIAL",
        type=serial,
        help="with --hardware-id: only the device with this serial number",
    )


def check_hardware_arguments(arguments: argparse.Namespace) -> None:
    """Raises `UsageError` if --serial stands alone."""
    if arguments.serial is not None and arguments.hardware_id is None:
        raise UsageError(
            "--serial goes with --hardware-id",
            code="usage",
            advice="a device that is named by its port needs no serial number",
        )


def hardware_of(arguments: argparse.Namespace) -> HardwareId | None:
    """What --hardware-id and --serial say; None without them."""
    if arguments.hardware_id is None:
        return None
    vendor_id, product_id = arguments.hardware_id
    return HardwareId(vendor_id=vendor_id, product_id=product_id, serial=arguments.serial)


def serial(text: str) -> str:
    """Argument type: a serial number, as the device has it."""
    if not 0 < len(text) <= LONGEST_SERIAL:
        raise argparse.ArgumentTypeError(f"a serial number has 1 to {LONGEST_SERIAL} characters")
    return text
