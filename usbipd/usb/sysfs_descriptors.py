"""The descriptors and the interfaces of a device, as Linux shows them in sysfs.

Runs in the extension, in threads, and in workers before they are confined.  Nothing is sent to the device.
Before Linux 6.3 the kernel answers only when no driver keeps the device waiting (drivers/usb/core/sysfs.c).
No pathlib: the worker of a real device has no other use for it.
"""

import io
import os
import struct
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.protocol.constants import USB_DT_CONFIG_SIZE
from usbipd.usb.descriptors import DescriptorError, DeviceDescriptors, parse_descriptors, split_descriptors

CLAIMABLE: Final = 8 * struct.calcsize("l")
"""usbfs can claim interfaces below this number: the bits of `ifclaimed` in drivers/usb/core/devio.c."""

UNUSABLE: Final = "unusable-descriptors"
_ADVICE: Final = "the kernel's own server, usbip-host, can share it"


def descriptors_in_sysfs(directory: str) -> DeviceDescriptors:
    """Those of the device in `directory`.  Raises `DescriptorError`, and `OSError` if it has gone."""
    return parse_descriptors(*split_descriptors(_read(directory, "descriptors")))


def configuration_in_sysfs(directory: str) -> int:
    """bConfigurationValue of the active configuration; 0: there is none.  Raises `OSError` if it has gone."""
    return int(_read(directory, "bConfigurationValue").strip() or b"0")


def devnum_in_sysfs(directory: str) -> int:
    """The device's address: another one whenever it is enumerated.  Raises `OSError` if it has gone."""
    return int(_read(directory, "devnum"))


def interfaces_in_sysfs(directory: str) -> set[int]:
    """bInterfaceNumber of each interface of the active configuration.  Raises `OSError` if it has gone."""
    # BUSID:CONFIGURATION.INTERFACE: usb_set_configuration in drivers/usb/core/message.c
    begin = f"{directory.rpartition('/')[2]}:"
    with os.scandir(directory) as entries:
        return {int(each.name.rpartition(".")[2]) for each in entries if each.name.startswith(begin)}


def why_not_claimable(directory: str) -> UsbipdError | None:
    """Why no process can claim the device in `directory`, whatever it tries; None: one can.

    Raises `OSError` if the device has gone.
    """
    device, configurations = split_descriptors(_read(directory, "descriptors"))
    try:
        parse_descriptors(device, configurations)
    except DescriptorError as error:
        return UsbipdError(f"its descriptors cannot be read: {error.message}", code=UNUSABLE, advice=_ADVICE)
    for each in configurations:
        if (total := int.from_bytes(each[2:4], "little")) < USB_DT_CONFIG_SIZE:
            # parse_config_descriptors in libusb's linux_usbfs.c
            return UsbipdError(
                f"one of its configurations claims to be {total} bytes long, and libusb refuses such devices",
                code=UNUSABLE,
                advice=_ADVICE,
            )
    if beyond := sorted(number for number in interfaces_in_sysfs(directory) if number >= CLAIMABLE):
        return UsbipdError(
            f"usbfs cannot claim interface {beyond[0]}, only numbers up to {CLAIMABLE - 1}",
            code=UNUSABLE,
            advice=_ADVICE,
        )
    return None


def _read(directory: str, attribute: str) -> bytes:
    with io.FileIO(f"{directory}/{attribute}") as file:
        return file.readall()
