"""The USB devices in the IORegistry of macOS, their arrivals and removals, and sleep and wake of the system.

Runs in the extension; the report of `usbipd doctor` reads the registry too.

The registry is the kernel's tree of devices, drivers and their clients.  Reading it sends nothing to a device and
needs no rights.  Every call is a message to the kernel, which answers at once unless a driver is being started or
stopped; the GIL is released meanwhile.  Any number of threads may call at a time.

Each reference to an object of the kernel or of CoreFoundation belongs to one `_Object` or `_Value`, which releases
it when it is deallocated: exactly once, even after an exception.
"""

from collections import namedtuple
from collections.abc import Sequence

cimport cython
from cpython.ref cimport PyObject
from iokit_min cimport *

from usbipd.errors import UsbipdError

ATTEMPTS = 5  # to read the tree while it does not change; plugging in a device changes it for a moment

Device = namedtuple("Device", "registry_id location ports properties")
Entry = namedtuple("Entry", "depth class_name name registry_id properties")

# Some devices match only the old name (libusb pull request 428), which may be removed.
_CLASSES = (b"IOUSBHostDevice", b"IOUSBDevice")

# The port number: in the device (older systems), or in the port that it is connected to; the last since macOS 26.
_PORT_NAMES = ("PortNum", "port", "usb-port-number")

# IOKit/IOReturn.h: the common errors from iokit_common_err(0x2bc) on, in order; a hyphen: no name.
_FIRST_ERROR = 0xe00002bc
_ERRORS = """
    Error NoMemory NoResources IPCError NoDevice NotPrivileged BadArgument LockedRead LockedWrite ExclusiveAccess
    BadMessageID Unsupported VMError InternalError IOError - CannotLock NotOpen NotReadable NotWritable NotAligned
    BadMedia StillOpen RLDError DMAError Busy Timeout Offline NotReady NotAttached NoChannels NoSpace - PortExists
    CannotWire NoInterrupt NoFrames MessageTooLarge NotPermitted NoPower NoMedia UnformattedMedia UnsupportedMode
    Underrun Overrun DeviceError NoCompletion Aborted NoBandwidth NotResponding IsoTooOld IsoTooNew NotFound
""".split()
_ERROR_NAMES = {_FIRST_ERROR + n: f"kIOReturn{name}" for n, name in enumerate(_ERRORS) if name != "-"}


def error_name(code: int) -> str:
    """An IOReturn for people: `kIOReturnExclusiveAccess (0xe00002c5)`, or only the number if it has no name."""
    number = code & 0xffffffff  # a kern_return_t is signed
    name = _ERROR_NAMES.get(number)
    return f"{name} ({number:#010x})" if name else f"{number:#010x}"


class _Changed(Exception):
    """The tree changed while it was read; carries how that was detected."""


cdef class _Object:
    """A reference to an object of the kernel."""

    cdef io_object_t port

    def __dealloc__(self):
        if self.port != 0:
            IOObjectRelease(self.port)


cdef class _Value:
    """A reference to a CoreFoundation value."""

    cdef CFTypeRef value

    def __dealloc__(self):
        if self.value != NULL:
            CFRelease(self.value)


def usb_devices(keys: Sequence[str]) -> list[Device]:
    """All USB devices, hubs among them, in any order.

    A `registry_id` is valid from one enumeration of the device to the next, or until it is unplugged; a capture
    does not change it.  `location` is the locationID (32 bits), whose upper 8 bits are the number of the bus.  `ports`
    are the port numbers on the way from the bus to the device, by the rule of libusb (get_device_port in
    darwin_usb.c); none if it is connected nowhere, such as a root hub.  Unlike libusb this goes up the IOService
    plane: the IOUSB plane of Intel Macs lacks hubs since macOS 12.4 (libusb issue 1156).  `properties` are as for
    `entries_below`.  Raises `UsbipdError`, code "iokit", if the registry cannot be read.
    """
    return _read(lambda: _all_devices(keys))


def entries_below(registry_id: int, keys: Sequence[str]) -> list[Entry]:
    """The USB device with this `registry_id` and all that is below it, depth first; none if it does not exist.

    The device has depth 0.  Each entry has the properties in `keys` that exist and are numbers or
    strings.  Texts come from the kernel, a driver or the device; bytes that are not UTF-8 become escapes, `\\xff`.
    A device that is removed meanwhile does not exist.  Raises `UsbipdError`, code "iokit", if the
    registry cannot be read.
    """
    return _read(lambda: _below(registry_id, keys))


def _read(read):
    for _ in range(ATTEMPTS):
        try:
            return read()
        except _Changed as change:
            reason = str(change)
    raise UsbipdError(f"the IORegistry cannot be read: {reason}", code="iokit")


cdef list _all_devices(keys):
    names = {key: _text(key) for key in keys}
    ports = {key: _text(key) for key in _PORT_NAMES}
    devices = _devices()
    return [
        Device(registry_id, location, _ports(device, devices, ports), _properties(device, names))
        for registry_id, (location, device) in devices.items()
    ]


cdef list _below(registry_id, keys):
    found = []
    device = _find(registry_id)
    if device is not None:
        _collect(device, 0, {key: _text(key) for key in keys}, found)
    return found


cdef _Object _find(registry_id):
    _location, device = _devices().get(registry_id, (None, None))
    return device


cdef dict _devices():
    """All USB devices, with their locationIDs, by their registry id."""
    key = _text("locationID")
    found = {}
    for class_name in _CLASSES:
        for device in _services(class_name):
            number = _property(device, key)
            if isinstance(number, int):
                found.setdefault(number & 0xffffffff, device)  # 32-bit numbers may be returned as negative
    return {_registry_id(device): (location, device) for location, device in found.items()}


cdef list _ports(_Object entry, dict devices, dict names):
    ports = []
    while entry is not None:
        if _registry_id(entry) in devices:  # the device, or a hub
            port = _port(entry, names)
            if port == 0:
                break
            ports.insert(0, port)
        entry = _parent(entry)
    return ports


cdef int _port(_Object device, dict names):
    """The number of the port that a device is connected to; 0: none."""
    number = _property(device, names["PortNum"])
    parent = _parent(device)
    for key in _PORT_NAMES[1:]:
        if number is None and parent is not None:
            number = _property(parent, names[key])
    return number & 0xff if isinstance(number, int) else 0


cdef _Object _parent(_Object entry):
    cdef _Object parent = _Object()
    cdef kern_return_t code
    with nogil:
        code = IORegistryEntryGetParentEntry(entry.port, "IOService", &parent.port)
    return parent if code == 0 else None


cdef object _registry_id(_Object entry):
    cdef kern_return_t code
    cdef uint64_t registry_id
    with nogil:
        code = IORegistryEntryGetRegistryEntryID(entry.port, &registry_id)
    _check(code, "IORegistryEntryGetRegistryEntryID")
    return registry_id


cdef list _services(const char *class_name):
    """All services of a class and its subclasses."""
    cdef _Object iterator = _Object()
    cdef CFDictionaryRef matching = IOServiceMatching(class_name)
    cdef kern_return_t code
    if matching == NULL:
        raise MemoryError
    with nogil:
        code = IOServiceGetMatchingServices(0, matching, &iterator.port)  # 0: the main port; it takes the dictionary
    _check(code, "IOServiceGetMatchingServices")
    return _drain(iterator)


cdef object _collect(_Object entry, int depth, dict keys, list found):
    cdef _Object iterator = _Object()
    cdef kern_return_t code
    cdef char text[128]  # io_name_t
    with nogil:
        code = IOObjectGetClass(entry.port, text)
    _check(code, "IOObjectGetClass")
    class_name = text.decode("utf-8", "backslashreplace")
    with nogil:
        code = IORegistryEntryGetName(entry.port, text)
    _check(code, "IORegistryEntryGetName")
    name = text.decode("utf-8", "backslashreplace")
    found.append(Entry(depth, class_name, name, _registry_id(entry), _properties(entry, keys)))
    with nogil:
        code = IORegistryEntryGetChildIterator(entry.port, "IOService", &iterator.port)
    _check(code, "IORegistryEntryGetChildIterator")
    for child in _drain(iterator):
        _collect(child, depth + 1, keys, found)


cdef list _drain(_Object iterator):
    """All objects of an iterator.  It stops early if the tree changes, which only IOIteratorIsValid reports."""
    cdef _Object each
    cdef bint valid
    found = []
    while True:
        each = _Object()
        with nogil:
            each.port = IOIteratorNext(iterator.port)
        if each.port == 0:
            break
        found.append(each)
    with nogil:
        valid = IOIteratorIsValid(iterator.port)
    if not valid:
        raise _Changed("it keeps changing")
    return found


cdef object _check(kern_return_t code, str call):
    # A removed entry fails in several ways; another attempt no longer finds it.
    if code != 0:
        raise _Changed(f"{call}: {error_name(code)}")


cdef _Value _text(str text):
    cdef _Value made = _Value()
    made.value = CFStringCreateWithCString(NULL, text.encode(), kCFStringEncodingUTF8)
    if made.value == NULL:
        raise MemoryError
    return made


cdef dict _properties(_Object entry, dict names):
    values = {key: _property(entry, name) for key, name in names.items()}
    return {key: value for key, value in values.items() if value is not None}


cdef object _property(_Object entry, _Value key):
    """A property that is a number or a string (up to 512 bytes); None for everything else.

    Data of up to eight bytes is a number too, as in the device tree.
    """
    cdef _Value found = _Value()
    cdef int64_t number
    cdef CFRange whole
    cdef CFIndex used
    cdef uint8_t text[512]
    with nogil:
        found.value = IORegistryEntryCreateCFProperty(entry.port, <CFStringRef>key.value, NULL, 0)
    if found.value == NULL:
        return None
    kind = CFGetTypeID(found.value)
    if kind == CFNumberGetTypeID():
        CFNumberGetValue(<CFNumberRef>found.value, kCFNumberSInt64Type, &number)
        return number
    if kind == CFStringGetTypeID():
        whole.location = 0
        whole.length = CFStringGetLength(<CFStringRef>found.value)
        CFStringGetBytes(<CFStringRef>found.value, whole, kCFStringEncodingUTF8, b"?", False, text, sizeof(text), &used)
        return text[:used].decode("utf-8", "backslashreplace")
    if kind == CFDataGetTypeID() and CFDataGetLength(<CFDataRef>found.value) <= 8:
        whole.location = 0
        whole.length = CFDataGetLength(<CFDataRef>found.value)
        CFDataGetBytes(<CFDataRef>found.value, whole, text)
        return int.from_bytes(text[:whole.length], "little")
    return None


include "iokit_reenumerate.pxi"
include "iokit_events.pxi"
include "iokit_power.pxi"
