"""The explanation of a failed claim: the holder, the code, and what to try."""

import re
from pathlib import Path

import pytest
import usb1

from usbipd.errors import ClaimError, UsbipdError
from usbipd.usb import claim_errors
from usbipd.usb.claim_errors import explain_claim_error
from usbipd.usb.ownership import Holder

VIRTUALBOX = Holder("program", "virtualbox", 4711, None)
QEMU = Holder("program", "qemu", 33, None)
UNSEEN = Holder("program", "", None, 0)
STORAGE = Holder("driver", "usb-storage", None, 0)
HID = Holder("driver", "usbhid", None, 1)

BUSY = ClaimError(
    "interface 0 cannot be claimed: Resource busy (LIBUSB_ERROR_BUSY, -6)", code="LIBUSB_ERROR_BUSY"
)
ACCESS = ClaimError(
    "device 5 of bus 1 cannot be opened: Access denied (LIBUSB_ERROR_ACCESS, -3)", code="LIBUSB_ERROR_ACCESS"
)
NOT_PERMITTED = ClaimError(
    "interface 0 cannot be claimed: Other error (LIBUSB_ERROR_OTHER, -99): USBInterfaceOpen: "
    "unknown error (0xe00002e2)",
    code="LIBUSB_ERROR_OTHER",
)
TIMEOUT = UsbipdError("worker[7] did not answer CLAIM within 60 s", code="timeout")


@pytest.mark.parametrize(
    ("error", "holders", "platform", "text", "advice"),
    [
        (
            BUSY,
            [VIRTUALBOX, HID],
            "linux",
            "is held by the program virtualbox (pid 4711)",
            "close the program virtualbox (pid 4711), then try again",
        ),
        (
            BUSY,
            [QEMU, VIRTUALBOX],
            "darwin",
            "is held by the program qemu (pid 33) and the program virtualbox (pid 4711)",
            "close the program qemu (pid 33) and the program virtualbox (pid 4711), then try again",
        ),
        (
            TIMEOUT,
            [HID, VIRTUALBOX],
            "linux",
            "is held by the driver usbhid, which does not release it",
            "plug the device in again, then try again",
        ),
        (
            BUSY,
            [STORAGE, STORAGE, HID],
            "linux",
            "is held by the driver usb-storage and the driver usbhid, which does not release it",
            "close the program that uses it on this host, such as a virtual machine, or unload the driver: "
            "modprobe --remove usb-storage usbhid, then try again",
        ),
        (
            BUSY,
            [STORAGE],
            "darwin",
            "is held by the driver usb-storage, which does not release it",
            "close the program that uses it on this host, such as a virtual machine, then try again",
        ),
        (
            BUSY,
            [UNSEEN, HID],
            "linux",
            "is held by another program",
            "close the program that uses it on this host, such as a virtual machine, then try again",
        ),
        (
            BUSY,
            [],
            "linux",
            "is held by another program or driver",
            "close the program that uses it on this host, such as a virtual machine, then try again",
        ),
        (
            ACCESS,
            [STORAGE],
            "linux",
            "may not be opened",
            "run the extension as root, with sudo or as a service, then try again",
        ),
        (
            ACCESS,
            [],
            "darwin",
            "may not be captured",
            "unmount all its volumes (diskutil unmountDisk DISK), and run the extension as root, "
            "with sudo or as a service, then try again",
        ),
        (
            ClaimError(f"the worker says: {NOT_PERMITTED.message}", code="useless", advice="ours"),
            [],
            "darwin",
            "cannot be claimed",
            "ours",
        ),
        (
            NOT_PERMITTED,
            [],
            "darwin",
            "may not be used by a service on this Mac",
            "stop the service, and run usbipd in a terminal of a logged-in user: "
            "sudo usbipd-ext --run, then try again",
        ),
        (
            ACCESS,
            [STORAGE],
            "darwin",
            "is held by the driver usb-storage, which does not release it",
            "unmount all its volumes (diskutil unmountDisk DISK), and run the extension as root, "
            "with sudo or as a service, then try again",
        ),
        (
            TIMEOUT,
            [STORAGE],
            "linux",
            "is held by the driver usb-storage, which does not release it",
            "plug the device in again, then try again",
        ),
        (TIMEOUT, [], "linux", "could not be claimed in time", "plug the device in again, then try again"),
        (
            ClaimError("x (LIBUSB_ERROR_NO_DEVICE, -4)", code="LIBUSB_ERROR_NO_DEVICE"),
            [STORAGE],
            "linux",
            "is gone",
            "plug the device in again, then try again",
        ),
    ],
)
def test_the_holder_and_the_advice(
    error: UsbipdError, holders: list[Holder], platform: str, text: str, advice: str
) -> None:
    explained = explain_claim_error("1-2", error, holders, platform=platform)
    assert isinstance(explained, ClaimError)
    assert explained.message == f"1-2 {text}: {error.message}"
    assert explained.advice == advice
    assert explained.code == error.code


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("1-2 cannot be described to clients: x", "1-2 cannot be described to clients: x"),
        ("libusb 1.0.9 is too old", "1-2 cannot be claimed: libusb 1.0.9 is too old"),
    ],
)
def test_errors_outside_the_table_stay_unchanged(message: str, text: str) -> None:
    explained = explain_claim_error("1-2", UsbipdError(message, code="odd", advice="update it"), [VIRTUALBOX])
    assert (explained.message, explained.code, explained.advice) == (text, "odd", "update it")


def test_every_code_of_libusb_exists() -> None:
    own = {"timeout", "spawn"}
    names = set(claim_errors._EXPLANATIONS) | set(claim_errors._ON_MACOS)
    assert names - own <= {f"LIBUSB_{name}" for name in dir(usb1) if re.fullmatch(r"ERROR_\w+", name)}


def test_texts_have_the_same_style() -> None:
    for each in [*claim_errors._EXPLANATIONS.values(), *claim_errors._ON_MACOS.values()]:
        assert each.text[0].islower()
        assert each.advice[0].islower()
        assert not each.advice.endswith(".")


def test_a_claim_error_has_the_name_and_number_of_its_code() -> None:
    """cython/claim.pyx, whose texts the table does not repeat."""
    source = (Path(__file__).parents[3] / "cython/claim.pyx").read_text()
    assert source.count("({name}, {code})") == 3
