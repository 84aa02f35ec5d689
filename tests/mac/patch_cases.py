"""The faults that the patches of packaging/libusb fix, in a process with libusb on a software Mac.

    python -m tests.mac.patch_cases CASE

prints the result; test_libusb_patches.py has the expected results, for stock libusb and with the patches.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import usb1

from tests.mac.kernel import errors
from tests.mac.rig import mac
from usbipd._claim import Claim

LIBRARY: Final = ctypes.CDLL("libusb-1.0.so.0")
ROUNDS: Final = 60
LISTS: Final = 1500
"""A list and a departing device collide in one of about 150."""
PATIENCE: Final = 10.0
"""Seconds after which a call counts as hanging."""
TRANSFERS: Final = 50
"""Isochronous transfers in flight together."""
NO_DEVICE_DISCOVERY: Final = 2  # enum libusb_option

HOTPLUG_CALLBACK: Final = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
DEVICE_LEFT: Final = 2  # enum libusb_hotplug_event

CASES: dict[str, Callable[[], object]] = {}


def case(function: Callable[[], object]) -> Callable[[], object]:
    CASES[function.__name__] = function
    return function


class Context:
    """A libusb_context, whose events a thread handles."""

    def __init__(self) -> None:
        self.pointer = ctypes.c_void_p()
        code = LIBRARY.libusb_init(ctypes.byref(self.pointer))
        assert code == 0, code

    def handle_events(self) -> None:
        def run() -> None:
            second = usb1.libusb1.timeval(1, 0)
            while True:
                LIBRARY.libusb_handle_events_timeout(self.pointer, ctypes.byref(second))

        threading.Thread(target=run, daemon=True).start()

    def open_first(self) -> ctypes.c_void_p:
        """A handle of the only device."""
        devices, handle = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_void_p()
        count = LIBRARY.libusb_get_device_list(self.pointer, ctypes.byref(devices))
        assert count == 1, count
        code = LIBRARY.libusb_open(ctypes.c_void_p(devices[0]), ctypes.byref(handle))
        assert code == 0, code
        LIBRARY.libusb_free_device_list(devices, 0)
        return handle

    def exit(self) -> None:
        LIBRARY.libusb_exit(self.pointer)


def watched(work: Callable[[], object]) -> str:
    """ "ends", or "hangs" if it does not return in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return "hangs" if thread.is_alive() else "ends"


@case
def exit_while_devices_come_and_go() -> str:
    devices = [mac().plug(location=0x14100000 + (port << 20), port=port) for port in (1, 2, 3)]
    for _ in range(ROUNDS):
        context = Context()
        for device in devices:
            device.replug()
        if watched(context.exit) == "hangs":
            return "hangs"
    return "ends"


@case
def bytes_of_aborted_transfers() -> list[tuple[str, int]]:
    """Status and actual_length of an IN, an OUT and a stalled IN, with 1024 bytes moved each."""
    device = mac().plug()
    usb1.loadLibrary(LIBRARY)
    names = {usb1.TRANSFER_CANCELLED: "cancelled", usb1.TRANSFER_STALL: "stall"}
    found: list[tuple[str, int]] = []
    with usb1.USBContext() as context:
        [each] = context.getDeviceList()
        handle = each.open()
        handle.claimInterface(0)

        def run(address: int, begin: Callable[[], None], end: Callable[[Any], None]) -> None:
            transfer = handle.getTransfer()
            transfer.setBulk(address, 4096 if address & 0x80 else bytes(4096), timeout=0)
            begin()
            transfer.submit()
            device.until_waiting(address, 1)
            end(transfer)
            while transfer.isSubmitted():
                context.handleEvents()
            found.append((names[transfer.getStatus()], transfer.getActualLength()))

        run(0x81, lambda: device.give(0x81, bytes(1024)), lambda transfer: transfer.cancel())
        run(0x01, lambda: device.credit(0x01, 2), lambda transfer: transfer.cancel())
        run(0x81, lambda: device.give(0x81, bytes(1024)), lambda _: device.stall(0x81))
    return found


@case
def a_context_without_discovery() -> dict[str, object]:
    """Arriving, leaving and reset devices in a context with the option."""
    own, other = mac().plug(location=0x14100000, port=1), mac().plug(location=0x14200000, port=2)
    other.unplug()
    context = Context()
    handle = context.open_first()
    code = LIBRARY.libusb_set_option(context.pointer, NO_DEVICE_DISCOVERY)
    reset = LIBRARY.libusb_reset_device(handle)
    left = threading.Event()

    def on_left(*_arguments: object) -> int:
        left.set()
        return 0

    callback = HOTPLUG_CALLBACK(on_left)
    any_device = -1
    LIBRARY.libusb_hotplug_register_callback(
        context.pointer, DEVICE_LEFT, 0, any_device, any_device, any_device, callback, None, None
    )
    context.handle_events()
    before = other.counters.get("opens", 0)
    other.replug()
    own.unplug()  # libusb is notified of it after the other one
    notified = left.wait(PATIENCE)
    devices = ctypes.POINTER(ctypes.c_void_p)()
    return {
        "option": code,
        "reset": reset,
        "opened": other.counters.get("opens", 0) - before,
        "notified that its own has left": notified,
        "listed": LIBRARY.libusb_get_device_list(context.pointer, ctypes.byref(devices)),
    }


@case
def reset() -> int:
    """libusb_reset_device, which returns after the device has left and returned."""
    mac().switch(reenumeration_waits=True, reenumeration_seconds=0.05)
    mac().plug()
    context = Context()
    return int(LIBRARY.libusb_reset_device(context.open_first()))


@case
def give_back() -> list[str]:
    """The problems of a claim's release, which enumerates the device in the same way."""
    mac().switch(reenumeration_waits=True, reenumeration_seconds=0.05)
    device = mac().plug(drivers={0: "hid"})
    claim = Claim(*device.busid, as_on_macos=True)
    claim.take()
    return claim.give_back()


@case
def reset_of_a_device_that_stays_silent() -> int:
    mac().plug()
    context = Context()
    handle = context.open_first()
    mac().call("fail", "DEVICE_REQUEST_SYNC", errors.NOT_RESPONDING, 10)
    return int(LIBRARY.libusb_reset_device(handle))


@case
def list_while_devices_leave() -> str:
    device = mac().plug()
    kept = Context()  # its data are freed when the device leaves
    kept.handle_events()
    for number in range(LISTS):
        mac().call("at_iteration", number % 3 + 1, "unplug", device.number)
        Context().exit()
        device.replug()
    return "lists"


@case
def services_of_silent_devices() -> int:
    """The number of references to unresponsive devices after libusb_exit."""
    mac().plug()
    mac().call("fail", "DEVICE_REQUEST_SYNC", errors.NOT_RESPONDING, 100)
    Context().exit()
    return int(LIBRARY.software_mac_references())


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2, mallinfo(3)"""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def allocated() -> int:
    """Bytes allocated by malloc in this process, without separate mappings."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    return int(mallinfo().uordblks)


@case
def memory_of_isochronous_transfers() -> int:
    """Growth of this process in bytes per transfer that was allocated, completed and freed."""
    mac().plug()
    usb1.loadLibrary(LIBRARY)
    with usb1.USBContext() as context:
        [each] = context.getDeviceList()
        handle = each.open()
        handle.claimInterface(0)
        handle.setInterfaceAltSetting(0, 1)

        def rounds(count: int) -> None:
            for _ in range(count):
                transfers = [handle.getTransfer(iso_packets=1) for _ in range(TRANSFERS)]
                for transfer in transfers:
                    transfer.setIsochronous(0x03, bytes(192))
                    transfer.submit()
                while any(transfer.isSubmitted() for transfer in transfers):
                    context.handleEvents()
                for transfer in transfers:
                    assert transfer.getStatus() == usb1.TRANSFER_COMPLETED, transfer.getStatus()
                    transfer.close()

        rounds(2)
        before = allocated()
        rounds(ROUNDS)
        return round((allocated() - before) / (ROUNDS * TRANSFERS))


@case
def version() -> str:
    usb1.loadLibrary(LIBRARY)
    return str(usb1.getVersion().rc.decode())


if __name__ == "__main__":
    print(CASES[sys.argv[1]](), flush=True)
    os._exit(0)  # without libusb's cleanup: a thread may hang
