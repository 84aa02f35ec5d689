"""Linker stubs for what libusb uses of Apple's frameworks, where there is no SDK.  Runs in builds.

Any other name is a linker error.
"""

from pathlib import Path
from typing import Final

FRAMEWORKS: Final = {
    "CoreFoundation": (
        *("CFBooleanGetTypeID", "CFBooleanGetValue", "CFDataGetBytes", "CFDataGetLength", "CFDataGetTypeID"),
        *("CFDictionaryCreateMutable", "CFDictionarySetValue", "CFGetTypeID", "CFNumberCreate"),
        *("CFNumberGetTypeID", "CFNumberGetValue", "CFRelease", "CFRetain", "CFRunLoopAddSource"),
        *("CFRunLoopGetCurrent", "CFRunLoopRemoveSource", "CFRunLoopRun", "CFRunLoopSourceCreate"),
        *("CFRunLoopSourceSignal", "CFRunLoopStop", "CFRunLoopWakeUp", "CFStringGetBytes"),
        *("CFStringGetLength", "CFUUIDGetUUIDBytes", "kCFAllocatorDefault", "kCFRunLoopCommonModes"),
        *("kCFRunLoopDefaultMode", "kCFTypeDictionaryKeyCallBacks", "kCFTypeDictionaryValueCallBacks"),
        "__CFConstantStringClassReference",  # the class of a CFSTR()
    ),
    "IOKit": (
        *(
            "IOCreatePlugInInterfaceForService",
            "IOIteratorNext",
            "IOKitWaitQuiet",
            "IONotificationPortCreate",
        ),
        *("IONotificationPortDestroy", "IONotificationPortGetRunLoopSource", "IOObjectRelease"),
        *("IOObjectRetain", "IORegistryEntryCreateCFProperty", "IORegistryEntryGetChildEntry"),
        *("IORegistryEntryGetParentEntry", "IOServiceAddMatchingNotification", "IOServiceAuthorize"),
        *("IOServiceGetMatchingService", "IOServiceGetMatchingServices", "IOServiceMatching"),
    ),
    "Security": ("SecTaskCopyValueForEntitlement", "SecTaskCreateFromSelf"),
}

SOFTWARE_MAC: Final = "@rpath/software-mac.dylib"
"""A library that does not exist: code linked with it was compiled with our headers, not Apple's, and must not
be loaded by mistake."""

_TEXT: Final = """--- !tapi-tbd
tbd-version:     4
targets:         [ x86_64-macos, arm64-macos ]
install-name:    '{path}'
exports:
  - targets:         [ x86_64-macos, arm64-macos ]
    symbols:         [ {symbols} ]
...
"""


def path(framework: str) -> str:
    """Where the linker of macOS finds a framework's library at run time."""
    return f"/System/Library/Frameworks/{framework}.framework/Versions/A/{framework}"


def write(directory: Path) -> list[str]:
    """Writes the stubs below `directory`.  Returns the linker's options."""
    for name, symbols in FRAMEWORKS.items():
        _write(directory / f"{name}.framework/{name}.tbd", path(name), symbols)
    own = directory / "libsoftware-mac.tbd"
    _write(own, SOFTWARE_MAC, ("software_mac_uuid",))
    return [f"-F{directory}", *(word for name in FRAMEWORKS for word in ("-framework", name)), str(own)]


def _write(stub: Path, install_name: str, symbols: tuple[str, ...]) -> None:
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text(_TEXT.format(path=install_name, symbols=", ".join(f"_{symbol}" for symbol in symbols)))
