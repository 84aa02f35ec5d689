"""Tells of USB devices by the kernel's own events.  Runs in the extension, on Linux.

Neither udevd nor libusb is asked: libusb's thread reads the descriptors of each device that arrives, and
while one is stuck, it tells of no other (see sysfs_devices.py).

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
"""Bytes: UEVENT_BUFFER_SIZE in include/linux/kobject.h is 2048, and the header comes before."""
READ_AT_ONCE: Final = 64
"""Events that are read before anything else has its turn."""


class UeventListener:
    """As `EventListener`."""

    def __init__(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """As in `EventListener`."""
        try:
            if not hears_the_kernel():
                self._on_end("no hotplug events inside a user namespace (container)")
                return
            self._socket = open_events()
        except OSError as error:
            self._on_end(f"the kernel does not tell of devices that come and go: {error.strerror}")
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
                is_about_us = tells_of_device(events.recv(LONGEST_EVENT))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._close()
                    self._on_end(f"the kernel has stopped telling of devices: {error.strerror}")
                    return
                is_about_us = True  # some were lost: any could have been
            if is_about_us:
                self._on_event()


def open_events() -> socket.socket:
    """A socket with the kernel's events from now on.  Raises `OSError`."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)
    try:
        events.bind((0, KERNEL_EVENTS))
    except OSError:
        events.close()
        raise
    return events


def hears_the_kernel(network: Path = Path("/proc/self/ns/net")) -> bool:
    """Whether the kernel sends its events in our network namespace, as in all of the first user namespace.

    Raises `OSError` if that cannot be told.
    """
    with network.open("rb") as namespace:
        try:
            owner = fcntl.ioctl(namespace, NS_GET_USERNS)
        except PermissionError:  # one that is outside of ours
            return False
    try:
        return os.fstat(owner).st_ino == PROC_USER_INIT_INO
    finally:
        os.close(owner)


def tells_of_device(event: bytes) -> bool:
    """Whether a USB device has come or gone.

    An event is ACTION@DEVPATH and then any number of KEY=VALUE, each ended by a NUL.
    """
    action, *fields = event.split(b"\0")
    is_device = b"SUBSYSTEM=usb" in fields and b"DEVTYPE=usb_device" in fields
    return is_device and action.startswith((b"add@", b"remove@"))
