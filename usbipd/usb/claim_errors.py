"""Explains to users why a device could not be claimed, who holds it, and what to try.  Used by the extension.

A table has the cause and the advice for each code; the message keeps the worker's text, with the code by name
and number.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from usbipd.errors import ClaimError, UsbipdError
from usbipd.usb.libusb_version import MINIMUM, RECOMMENDED_ON_MACOS, dotted
from usbipd.usb.ownership import Holder


@dataclass(frozen=True, slots=True)
class _Explanation:
    """The meaning of a code; the text follows the busid."""

    text: str
    advice: str
    is_held: bool = False
    """Whether the reason is a program or driver that holds the device."""


_REPLUG: Final = "plug the device in again"
_OTHER_PORT: Final = "plug the device into another port, or use another cable"
_AS_ROOT: Final = "run the extension as root, with sudo or as a service"

_EXPLANATIONS: Final = {
    # libusb.h, enum libusb_error
    "LIBUSB_ERROR_IO": _Explanation("does not answer", _OTHER_PORT),
    "LIBUSB_ERROR_ACCESS": _Explanation("may not be opened", _AS_ROOT),
    "LIBUSB_ERROR_NO_DEVICE": _Explanation("is gone", _REPLUG),
    "LIBUSB_ERROR_NOT_FOUND": _Explanation("changed while it was being claimed", _REPLUG),
    "LIBUSB_ERROR_BUSY": _Explanation(
        "is held by another program or driver",
        "close the program that uses it on this host, such as a virtual machine",
        is_held=True,
    ),
    "LIBUSB_ERROR_TIMEOUT": _Explanation("does not answer in time", _OTHER_PORT),
    "LIBUSB_ERROR_OVERFLOW": _Explanation("returns more data than requested", _OTHER_PORT),
    "LIBUSB_ERROR_PIPE": _Explanation("refuses a request that every device must answer", _OTHER_PORT),
    "LIBUSB_ERROR_NO_MEM": _Explanation(
        "cannot be claimed: this host is short of memory", "close other programs"
    ),
    "LIBUSB_ERROR_NOT_SUPPORTED": _Explanation(
        "cannot be claimed with this libusb",
        f"install libusb {dotted(MINIMUM)} or newer (macOS: {dotted(RECOMMENDED_ON_MACOS)}) and start again",
    ),
    # usbipd's codes
    "timeout": _Explanation("could not be claimed in time", _REPLUG, is_held=True),
    "spawn": _Explanation(
        "could not be claimed: no worker process could be started",
        "close other programs: this host is short of memory, processes or open files",
    ),
}

_ON_MACOS: Final = {
    # Capturing needs root, and a storage driver keeps the device while a volume is mounted:
    # USBDeviceReEnumerate in IOUSBLib.h.
    "LIBUSB_ERROR_ACCESS": _Explanation(
        "may not be captured",
        f"unmount all its volumes (diskutil unmountDisk DISK), and {_AS_ROOT}",
        is_held=True,
    ),
}


_NOT_PERMITTED: Final = "0xe00002e2"  # kIOReturnNotPermitted, IOKit/IOReturn.h
_SERVICE_REFUSED: Final = _Explanation(
    "may not be used by a service on this Mac",
    "stop the service, and run usbipd in a terminal of a logged-in user: sudo usbipd-ext --run",
)
"""Reported for storage since macOS 15.3: launchd's jobs are refused what root may do in a terminal."""


def explain_claim_error(
    busid: str, error: UsbipdError, holders: Sequence[Holder], *, platform: str = sys.platform
) -> ClaimError:
    """`error`, with which the claim failed, in words for users.

    `holders` have the device now, those that block the claim first.  The code stays; so do message and advice
    of an error that is not in the table.
    """
    explanation = _EXPLANATIONS.get(error.code)
    if platform == "darwin":
        explanation = _ON_MACOS.get(error.code, explanation)
        if error.code.startswith("LIBUSB_ERROR_") and _NOT_PERMITTED in error.message:
            explanation = _SERVICE_REFUSED
    if explanation is None:
        is_whole = error.message.startswith(busid)
        text = error.message if is_whole else f"{busid} cannot be claimed: {error.message}"
        return ClaimError(text, code=error.code, advice=error.advice)
    text, advice = explanation.text, explanation.advice
    if explanation.is_held and holders:
        # If a program blocks the claim, the drivers of other interfaces do not, and the other way round.
        culprits = [holder for holder in holders if holder.kind == holders[0].kind]
        text = f"is held by {_list(culprits)}"
        if holders[0].kind == "driver":
            text += ", which does not release it"
            if platform == "linux" and error.code == "LIBUSB_ERROR_BUSY":
                drivers = dict.fromkeys(holder.name for holder in culprits)
                advice = f"{advice}, or unload the driver: modprobe --remove {' '.join(drivers)}"
        elif any(holder.name for holder in culprits):
            advice = f"close {_list(culprits)}"
    return ClaimError(f"{busid} {text}: {error.message}", code=error.code, advice=f"{advice}, then try again")


def _list(holders: Sequence[Holder]) -> str:
    return " and ".join(dict.fromkeys(str(holder) for holder in holders))
