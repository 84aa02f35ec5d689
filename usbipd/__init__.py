"""usbipd: shares the USB devices of a Mac or a Linux host over USB/IP 1.1.1."""

__version__ = "0.1.0"
