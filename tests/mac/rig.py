"""The pump of a software Mac's device, for cases in a process with the software Mac's libusb (`in_process`).

`mac()` is the process's kernel.  `MacRig` claims a device as on macOS and has one client.
"""

import ctypes
import functools
import os
import time
from pathlib import Path
from typing import Any, Final

import usbipd
from tests.mac.mac import VARIABLE, Device, Mac
from tests.unit.worker.rig import Rig
from tests.urb import Command, Reply, RetSubmit, encode
from usbipd import _pump
from usbipd._claim import Claim
from usbipd.ipc.control_messages import DeviceMemory

PATIENCE: Final = 10.0
"""Seconds until a missing reply fails a test."""


@functools.cache
def mac() -> Mac:
    assert hasattr(ctypes.CDLL("libusb-1.0.so.0"), "software_mac_values"), (
        "this process's libusb is not the software Mac's"
    )
    return _MacOfThisProcess(Path(os.environ[VARIABLE]))


class _MacOfThisProcess(Mac):
    def plug(self, kind: str = "scripted", **options: Any) -> Device:
        """As `Mac.plug`; libusb in this process has also handled the arrival."""
        device = super().plug(kind, **options)
        until_notified()
        return device


def find_iokit() -> None:
    """Makes `usbipd._iokit` importable: the one built beside this process's libusb."""
    directory = os.environ["LD_LIBRARY_PATH"]
    if directory not in usbipd.__path__:
        usbipd.__path__.append(directory)


def until_notified() -> None:
    """Waits until libusb has handled all notifications of what has happened so far.

    It can list a device twice that arrives while a context starts, and then reports the removal of one
    of them only; and its exit may crash beside its event thread.  A worker starts when its device has been
    there for a while, and does not exit libusb.
    """
    pending = ctypes.CDLL("libusb-1.0.so.0").software_mac_pending_notifications
    pending.restype = ctypes.c_long
    end = time.monotonic() + PATIENCE
    while pending():
        assert time.monotonic() < end, "libusb does not handle its notifications"
        time.sleep(0.001)


def take(device: Device) -> Claim:
    claim = Claim(*device.busid, as_on_macos=True)
    claim.take()
    return claim


def give_back(claim: Claim) -> None:
    """Releases a device; fails if that does not succeed."""
    assert claim.give_back() == []


def end(claim: Claim) -> None:
    """Closes what a worker leaves open until it exits; a test process has many claims in sequence.

    libusb loses track of its devices with many contexts during an enumeration.
    """
    until_notified()
    libusb, pointer = ctypes.CDLL("libusb-1.0.so.0"), ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handle, context = (
        ctypes.c_void_p(pointer(capsule, name))
        for capsule, name in (
            (claim.handle, b"libusb_device_handle"),
            (claim.context, b"libusb_context"),
        )
    )
    libusb.libusb_close(handle)
    libusb.libusb_exit(context)


class MacRig(Rig):
    """The pump of `device`, claimed."""

    def __init__(
        self, device: Device, *, device_memory: DeviceMemory = "auto", claim: Claim | None = None
    ) -> None:
        self.plugged = device
        self.claim = take(device) if claim is None else claim
        transfers = _pump.LibusbTransfers(self.claim, as_on_macos=True, device_memory=device_memory)
        self._start(transfers, self.claim.descriptors.configurations, self.claim.configuration)

    def wait(self, count: int, *commands: Command) -> list[Reply]:
        """Sends the commands, then waits for so many replies, which depend on other threads."""
        self.send(b"".join(encode(command) for command in commands))
        found = self.received()
        end = time.monotonic() + PATIENCE
        while len(found) < count:
            assert time.monotonic() < end, f"{len(found)} replies of {count} in {PATIENCE:.0f} s"
            self.turn()
            found += self.received()
        return found

    def reply(self, *commands: Command) -> RetSubmit:
        """Sends the commands and returns the only RET_SUBMIT."""
        [found] = self.wait(1, *commands)
        assert isinstance(found, RetSubmit)
        return found

    def control(self, setup: str, data: bytes = b"", length: int | None = None) -> RetSubmit:
        raw = bytes.fromhex(setup)
        wanted = int.from_bytes(raw[6:8], "little") if length is None else length
        return self.reply(self.submit(raw[0] & 0x80, wanted, data, setup=raw))

    def close(self) -> None:
        """Ends the session and releases the device."""
        self.finish()
        self._pumps_channel.close()
        self._channel.close()
        claim = self.claim
        del self.pump, self.transfers, self.claim
        give_back(claim)
