"""Our CoreFoundation and IOKit as called by a program.  test_worker.py runs it, in a separate process."""

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.mac.mac import Device
from tests.mac.rig import find_iokit, mac

UTF8 = 0x08000100
LIBRARY = "libusb-1.0.so.0"
TWICE = f"""
import ctypes
library = ctypes.CDLL("{LIBRARY}")
library.CFStringCreateWithCString.restype = ctypes.c_void_p
library.IOServiceMatching.restype = ctypes.c_void_p
"""
OF_A_STRING = """
text = ctypes.c_void_p(library.CFStringCreateWithCString(None, b"x", 0x08000100))
library.CFRelease(text)
library.CFRelease(text)
"""
OF_AN_OBJECT = """
iterator = ctypes.c_uint32()
matching = ctypes.c_void_p(library.IOServiceMatching(b"IOUSBDevice"))
assert library.IOServiceGetMatchingServices(0, matching, ctypes.byref(iterator)) == 0
library.IOObjectRelease(iterator)
library.IOObjectRelease(iterator)
"""


class Range(ctypes.Structure):
    _fields_ = (("location", ctypes.c_long), ("length", ctypes.c_long))


@pytest.fixture
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    library.CFStringCreateWithCString.restype = ctypes.c_void_p
    library.CFStringGetLength.restype = library.CFStringGetBytes.restype = ctypes.c_long
    library.software_mac_references.restype = library.software_mac_values.restype = ctypes.c_long
    return library


@pytest.fixture
def device() -> Iterator[Device]:
    device = mac().plug(drivers={0: "storage"})
    yield device
    device.unplug()


@pytest.mark.parametrize(
    ("text", "units"), [("", 0), ("plain", 5), ("Maß", 3), ("日本", 2), ("a\N{GRINNING FACE}b", 4)]
)
def test_string_length_in_utf_16(library: ctypes.CDLL, text: str, units: int) -> None:
    string = ctypes.c_void_p(library.CFStringCreateWithCString(None, text.encode(), UTF8))
    assert library.CFStringGetLength(string) == units
    buffer, used = ctypes.create_string_buffer(64), ctypes.c_long()
    assert (
        library.CFStringGetBytes(
            string, Range(0, units), UTF8, 0, False, buffer, ctypes.c_long(64), ctypes.byref(used)
        )
        == units
    )
    assert buffer.raw[: used.value].decode() == text
    library.CFRelease(string)


def test_invalid_utf_8_is_refused(library: ctypes.CDLL) -> None:
    assert library.CFStringCreateWithCString(None, b"\xff", UTF8) is None


def test_only_whole_characters_are_copied(library: ctypes.CDLL) -> None:
    string = ctypes.c_void_p(library.CFStringCreateWithCString(None, "aß".encode(), UTF8))
    buffer, used = ctypes.create_string_buffer(8), ctypes.c_long()
    assert (
        library.CFStringGetBytes(
            string, Range(0, 2), UTF8, 0, False, buffer, ctypes.c_long(2), ctypes.byref(used)
        )
        == 1
    )
    assert used.value == 1
    library.CFRelease(string)


@pytest.mark.parametrize("work", [OF_A_STRING, OF_AN_OBJECT])
def test_an_excess_release_aborts_the_process(work: str) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE + work], capture_output=True, text=True)
    assert done.returncode != 0
    assert "released too often" in done.stderr


def test_reading_the_registry_leaks_nothing(library: ctypes.CDLL, device: Device) -> None:
    find_iokit()
    from usbipd._iokit import entries_below

    before = library.software_mac_references(), library.software_mac_values()
    entries = entries_below(device.registry_id, ["BSD Name", "bInterfaceNumber"])
    assert [entry.class_name for entry in entries] == [
        "IOUSBHostDevice",
        "IOUSBHostInterface",
        "IOUSBMassStorageDriver",
        "IOSCSILogicalUnitNub",
        "IOBlockStorageDriver",
        "IOMedia",
        "IOUSBHostInterface",
    ]
    assert entries[5].properties == {"BSD Name": "disk4"}
    assert (library.software_mac_references(), library.software_mac_values()) == before


def test_a_changing_registry_is_read_again(device: Device) -> None:
    find_iokit()
    from usbipd._iokit import entries_below

    mac().call("at_iteration", 4, "remove_entry", mac().call("add_entry", device.registry_id, "IOSomething"))
    classes = [entry.class_name for entry in entries_below(device.registry_id, [])]
    assert len(classes) == 7
    assert "IOSomething" not in classes


def test_sleep_and_wake_are_reported() -> None:
    find_iokit()
    from usbipd._iokit import PowerListener

    changes: list[str] = []
    woken = threading.Event()

    def on_change(change: str) -> None:
        changes.append(change)
        if change == "wakes":
            woken.set()

    listener = PowerListener(on_change)
    assert mac().sleep()
    mac().wake()
    assert woken.wait(10)
    assert changes == ["sleeps", "wakes"]
    listener.close()
    assert mac().call("power_listeners") == 0
