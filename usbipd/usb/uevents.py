"""Receives the kernel's events of USB devices.  Runs in the extension, on Linux.

Neither udevd nor libusb is used: libusb's thread reads the descriptors of each new device, and reports no
other device while one is stuck (see sysfs_devices.py).

Source: kobject_uevent_env and uevent_net_init in lib/kobject_uevent.c.
"""

import asyncio
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

assert sys.platform == "linux"

NETLINK_KOBJECT_UEVENT: Final = 15  # include/uapi/linux/netlink.h
KERNEL_EVENTS: Final = 1  # the multicast group of the kernel itself
NS_GET_USERNS: Final = 0xB701  # include/uapi/linux/nsfs.h
PROC_USER_INIT_INO: Final = 0xEFFFFFFD  # include/linux/proc_ns.h: the first user namespace

LONGEST_EVENT: Final = 8192
"""Bytes: UEVENT_BUFFER_SIZE in include/linux/kobject.h is 2048, plus the header."""
READ_AT_ONCE: Final = 64
"""Events read in one turn of the event loop."""


class UeventListener:
    """As `EventListener`."""

    def __init__(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """As in `EventListener`."""
        try:
            if not receives_kernel_events():
                self._on_end("no hotplug events inside a user namespace (container)")
                return
            self._socket = open_events()
        except OSError as error:
            self._on_end(f"the kernel sends no hotplug events: {error.strerror}")
            return
        asyncio.get_running_loop().add_reader(self._socket, self._read, self._socket)
        self._on_event()

    async def stop(self) -> None:
        """As in `EventListener`."""
        self._close()

    def _close(self) -> None:
        events, self._socket = self._socket, None
        if events is not None:
            asyncio.get_running_loop().remove_reader(events)
            events.close()

    def _read(self, events: socket.socket) -> None:
        for _ in range(READ_AT_ONCE):
            try:
                is_about_us = is_device_event(events.recv(LONGEST_EVENT))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._close()
                    self._on_end(f"the kernel has stopped sending hotplug events: {error.strerror}")
                    return
                is_about_us = True  # events were lost, perhaps of a USB device
            if is_about_us:
                self._on_event()


def open_events() -> socket.socket:
    """A socket that receives the kernel's events from now on.  Raises `OSError`."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, KERNEL_EVENTS))
    except OSError:
        events.close()
        raise
    return events


def receives_kernel_events(network: Path = Path("/proc/self/ns/net")) -> bool:
    """Whether the kernel sends its events in our network namespace, as in all of the first user namespace.

    Raises `OSError` if that is unknown.
    """
    with network.open("rb") as namespace:
        try:
            owner = fcntl.ioctl(namespace, NS_GET_USERNS)
        except PermissionError:  # the namespace is outside our own
            return False
    try:
        return os.fstat(owner).st_ino == PROC_USER_INIT_INO
    finally:
        os.close(owner)


def is_device_event(event: bytes) -> bool:
    """Whether a USB device has arrived or left.

    An event is ACTION@DEVPATH, then any number of KEY=VALUE, each terminated by a NUL.
    """
    action, *fields = event.split(b"\0")
    is_device = b"SUBSYSTEM=usb" in fields and b"DEVTYPE=usb_device" in fields
    return is_device and action.startswith((b"add@", b"remove@"))
