"""The libusb versions that usbipd needs, the loaded one, and its faults.

Runs in the extension and in commands; workers use only the numbers.
"""

import logging
from typing import Final, NamedTuple

_LOG: Final = logging.getLogger(__name__)

MINIMUM: Final = (1, 0, 26)  # the first with whole-device capture on macOS and its fixes
RECOMMENDED_ON_MACOS: Final = (1, 0, 30)  # port numbers on macOS 26, several uses of freed memory
PATCHED: Final = "-usbipd"  # packaging/libusb/0008-version.patch; a number follows


class LibusbVersion(NamedTuple):
    """The result of libusb_get_version()."""

    number: tuple[int, int, int]
    suffix: str
    """`rc`: empty in an upstream release."""

    def __str__(self) -> str:
        return f"{dotted(self.number)}{self.suffix}"

    @property
    def lacks_on_macos(self) -> str | None:
        """What does not work on macOS with this libusb; None if everything works."""
        if self.number < RECOMMENDED_ON_MACOS:
            return f"it has known faults on macOS that {dotted(RECOMMENDED_ON_MACOS)} fixes"
        if not self.suffix.startswith(PATCHED):
            return (
                "it is not usbipd's own build: a request that a client cancels may end others of the same "
                "endpoint with an error, and a device that is plugged in may delay the others"
            )
        return None


def loaded() -> LibusbVersion:
    """Loads libusb if necessary.  Raises `OSError` if it cannot be loaded."""
    import usb1  # here: a worker loads libusb without it

    version = usb1.getVersion()
    return LibusbVersion((version.major, version.minor, version.micro), version.rc.decode())


def log_loaded() -> None:
    """Log which libusb this Mac's daemon runs with; a warning if it lacks something."""
    try:
        version = loaded()
    except OSError as error:
        _LOG.error("libusb 1.0 cannot be loaded: %s", error)
        return
    if (lack := version.lacks_on_macos) is None:
        _LOG.info("libusb %s", version)
    else:
        _LOG.warning("libusb %s: %s", version, lack)


def dotted(number: tuple[int, int, int]) -> str:
    """The version number as text."""
    return ".".join(map(str, number))
