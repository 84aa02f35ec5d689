"""What the IORegistry of macOS knows of one USB device, and when the system sleeps.  Runs in the extension.

The registry is the kernel's tree of devices, drivers and their clients.  To read it sends nothing to a device and
needs no rights.  Every call is a message to the kernel, which answers at once unless a driver is just coming or
going; the GIL is released meanwhile.  Any thread may call, several at a time.

What the kernel or CoreFoundation hands out is owned by one `_Object` or `_Value`, which gives it back when it is
dropped: so each is released exactly once, also on the way of an exception.
"""

from collections import namedtuple
from collections.abc import Sequence

cimport cython
from cpython.ref cimport PyObject
from iokit_min cimport *

from usbipd.errors import UsbipdError

ATTEMPTS = 5  # to read the tree without its changing meanwhile: a device that is plugged in changes it for a moment

Entry = namedtuple("Entry", "depth class_name name registry_id properties")

# IOKit/IOReturn.h: the common errors from iokit_common_err(0x2bc) on, in their order; a hyphen has no name.
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
    """An IOReturn for people: `kIOReturnExclusiveAccess (0xe00002c5)`, or the number alone if it has no name."""
    number = code & 0xffffffff  # a kern_return_t is signed
    name = _ERROR_NAMES.get(number)
    return f"{name} ({number:#010x})" if name else f"{number:#010x}"


class _Changed(Exception):
    """The tree is no longer the one that was being read; carries what was noticed."""


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


def entries_below(location: int, keys: Sequence[str]) -> list[Entry]:
    """The USB device with this locationID (32 bits) and all that is below it, depth first; none if it is not there.

    The device has depth 0.  A `registry_id` is of one entry for as long as it is there, and of none before or after
    until the next start: a device that is enumerated anew gets another one.  Of each entry those properties are there
    that `keys` names, if it has them and they are numbers or strings.  Texts are what the kernel, a driver or the
    device says; bytes that are not UTF-8 stand as escapes, `\\xff`.  A device that goes meanwhile is one that is not
    there.  Raises `UsbipdError`, code "iokit", if the registry cannot be read.
    """
    for _ in range(ATTEMPTS):
        found = []
        try:
            device = _find(location)
            if device is not None:
                _collect(device, 0, {key: _text(key) for key in keys}, found)
            return found
        except _Changed as change:
            reason = str(change)
    raise UsbipdError(f"the IORegistry cannot be read: {reason}", code="iokit")


cdef _Object _find(location):
    key = _text("locationID")
    for class_name in (b"IOUSBHostDevice", b"IOUSBDevice"):  # the second: before OS X 10.11
        for device in _services(class_name):
            number = _property(device, key)
            # a number of 32 bits may come back as a negative one
            if isinstance(number, int) and number & 0xffffffff == location:
                return device
    return None


cdef list _services(const char *class_name):
    """All services of a class, and of those that are derived from it."""
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
    cdef uint64_t registry_id
    with nogil:
        code = IOObjectGetClass(entry.port, text)
    _check(code, "IOObjectGetClass")
    class_name = text.decode("utf-8", "backslashreplace")
    with nogil:
        code = IORegistryEntryGetName(entry.port, text)
    _check(code, "IORegistryEntryGetName")
    with nogil:
        code = IORegistryEntryGetRegistryEntryID(entry.port, &registry_id)
    _check(code, "IORegistryEntryGetRegistryEntryID")
    values = {key: _property(entry, name) for key, name in keys.items()}
    properties = {key: value for key, value in values.items() if value is not None}
    name = text.decode("utf-8", "backslashreplace")
    found.append(Entry(depth, class_name, name, registry_id, properties))
    with nogil:
        code = IORegistryEntryGetChildIterator(entry.port, "IOService", &iterator.port)
    _check(code, "IORegistryEntryGetChildIterator")
    for child in _drain(iterator):
        _collect(child, depth + 1, keys, found)


cdef list _drain(_Object iterator):
    """All that an iterator has.  It ends early when what it goes through changes, and tells only if asked."""
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
    # An entry that has just gone fails in more ways than one: another attempt does not find it any more.
    if code != 0:
        raise _Changed(f"{call}: {error_name(code)}")


cdef _Value _text(str text):
    cdef _Value made = _Value()
    made.value = CFStringCreateWithCString(NULL, text.encode(), kCFStringEncodingUTF8)
    if made.value == NULL:
        raise MemoryError
    return made


cdef object _property(_Object entry, _Value key):
    """A property that is a number or a string (of which 512 bytes are enough); None for everything else."""
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
    return None


include "iokit_power.pxi"
