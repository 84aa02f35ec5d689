"""The claim: detaches a real device from the host's drivers, holds it, and releases it.  Runs in workers.

libusb does the work on both systems (usbfs on Linux, IOKit capture on macOS).  A claim is made once, for the whole
device, and released once: on macOS the first detach captures the device and the last attach releases it
(darwin_usb.c), and libusb's automatic detaching would release it with the first interface.

Files that libusb opens stay open until the process exits: on macOS libusb_exit waits for a thread that may wait for a
lock of libusb_exit (darwin_exit, up to 1.0.30), and libusb_close waits for a device that has been removed.

Nothing here retries or waits: the extension decides what happens after an error.
"""

import os
import sys

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint8_t
from libc.string cimport strncpy
from libusb cimport *

include "linux_errno.pxi"
include "interface.pxi"

from usbipd.errors import ClaimError
from usbipd.usb.descriptors import MAX_CONFIGURATIONS, DescriptorError, Interface, parse_descriptors
from usbipd.usb.libusb_version import MINIMUM, dotted


cdef enum:
    LONGEST_WORDS = 240
    FROM_DEVICE = 0x80       # bmRequestType, USB 2.0 table 9-2
    GET_DESCRIPTOR = 6       # USB 2.0 table 9-4
    DEVICE_DESCRIPTOR = 1    # USB 2.0 table 9-5
    CONFIGURATION_DESCRIPTOR = 2
    DEVICE_SIZE = 18         # USB 2.0 table 9-8
    CONFIGURATION_SIZE = 9   # USB 2.0 table 9-10
    DESCRIPTOR_TIME = 5000   # milliseconds: USB_CTRL_GET_TIMEOUT in include/linux/usb.h

# The last message of libusb: it has the error of the host's stack, which libusb's codes lack.  One device per
# process; libusb calls from within its functions, on macOS also from a separate thread, which must not wait for the
# GIL.
cdef char last_words[LONGEST_WORDS]


cdef void keep_words(libusb_context *context, int level, const char *text) noexcept nogil:
    strncpy(last_words, text, LONGEST_WORDS - 1)


cdef object error(int code, str what):
    """Without advice: the extension adds it (usbipd/usb/claim_errors.py), since it knows who holds the device."""
    name = libusb_error_name(code).decode()
    words = " ".join((<bytes>last_words).decode("utf-8", "backslashreplace").split())
    last_words[0] = 0
    reason = f"{what}: {libusb_strerror(code).decode()} ({name}, {code})"
    return ClaimError(f"{reason}: {words}" if words else reason, code=name)


def libusb_runtime_version() -> tuple[int, int, int]:
    """The version of the libusb in use."""
    cdef const libusb_version *version = libusb_get_version()
    return version.major, version.minor, version.micro


def libusb_runtime_name() -> str:
    """The version with the suffix of the build, such as "1.0.30-usbipd2"; packaging/libusb."""
    return dotted(libusb_runtime_version()) + libusb_get_version().rc.decode()


cdef class Claim:
    """One device of this host, found by bus number and address; held from `take` until `give_back`.

    Blocks for as long as the device takes to answer.  One thread.  Raises `ClaimError` with libusb's name of the
    reason; whatever was claimed before an error is released first.

    descriptors, configuration: what the host's kernel knows of the device, and bConfigurationValue of its active
    configuration; without them, the device and libusb are asked.
    as_on_macos: what is true of this system's libusb; tests say otherwise.  A detach then captures the whole device,
    and an attach ends that.  libusb counts both, so there is one of each, whatever becomes of the configuration
    meanwhile (darwin_detach_kernel_driver and darwin_attach_kernel_driver in darwin_usb.c).  Only root can capture;
    another user gets a device that no driver has.
    """

    cdef OpenDevice _device
    cdef readonly object descriptors
    """`DeviceDescriptors`: all configurations."""
    cdef readonly object context
    """The libusb_context, as a capsule for the pump."""
    cdef readonly object handle
    """The libusb_device_handle, as a capsule for the pump."""
    cdef readonly list detached
    """bInterfaceNumber of every interface whose driver was detached, in that order."""
    cdef readonly list held
    """bInterfaceNumber of every claimed interface, in that order."""
    cdef readonly int configuration
    """bConfigurationValue of the active configuration; 0: the device is not configured.  Read once: on Linux libusb
    looks it up in sysfs, which a confined worker no longer has, and only this process changes it."""
    cdef readonly bint complete
    """Whether every interface of the active configuration is claimed."""
    cdef bint detaches
    cdef bint captures
    cdef bint lacks_setting_0  # an interface does

    def __cinit__(self, int busnum, int devnum, *, descriptors=None, configuration=None,
                  bint as_on_macos=sys.platform == "darwin"):
        cdef int code
        self.captures = as_on_macos
        if libusb_runtime_version() < MINIMUM:
            found, least = dotted(libusb_runtime_version()), dotted(MINIMUM)
            raise ClaimError(f"libusb {found} is too old: usbipd needs {least} or newer", code="old-libusb")
        self.detached = []
        self.held = []
        code = libusb_init(&self._device.context)
        if code < 0:
            raise error(code, "libusb does not start")
        last_words[0] = 0
        libusb_set_log_cb(self._device.context, <libusb_log_cb>keep_words, LIBUSB_LOG_CB_CONTEXT)
        self.context = PyCapsule_New(self._device.context, "libusb_context", NULL)
        self._open(busnum, devnum)
        if self.captures:  # libusb would open each device that arrives, and hold up its events; not every libusb can
            libusb_set_option(self._device.context, LIBUSB_OPTION_NO_DEVICE_DISCOVERY)
        if configuration is not None:
            self.configuration = configuration
        else:
            code = libusb_get_configuration(self._device.handle, &self.configuration)
            if code < 0:
                raise error(code, "the device does not say which configuration is active")
        self.handle = PyCapsule_New(self._device.handle, "libusb_device_handle", NULL)
        self.detaches = libusb_has_capability(LIBUSB_CAP_SUPPORTS_DETACH_KERNEL_DRIVER)
        self.descriptors = self._ask() if descriptors is None else descriptors

    cdef object _open(self, int busnum, int devnum):
        cdef libusb_device **devices
        cdef ssize_t count = libusb_get_device_list(self._device.context, &devices), i
        cdef int code = LIBUSB_ERROR_NO_DEVICE
        if count < 0:
            raise error(<int>count, "libusb lists no devices")
        for i in range(count):
            if libusb_get_bus_number(devices[i]) == busnum and libusb_get_device_address(devices[i]) == devnum:
                if self.captures:  # IOKit's code; on Linux that of libusb tells as much
                    libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_WARNING)
                code = libusb_open(devices[i], &self._device.handle)
                libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_NONE)
                break
        else:
            code = self._wrap(busnum, devnum)
        libusb_free_device_list(devices, 1)
        if code < 0:
            raise error(code, f"device {devnum} of bus {busnum} cannot be opened")
        last_words[0] = 0  # a warning that is no error: a driver has the device open

    cdef int _wrap(self, int busnum, int devnum) except? -1:
        """Linux: libusb does not list a device if it fails to divide `descriptors` in sysfs into configurations.  In
        usbfs they lie wTotalLength apart (parse_config_descriptors in linux_usbfs.c).  It asks such a device for its
        configuration, so this is no way to open others.
        """
        cdef int code
        cdef intptr_t file
        if self.captures:
            return LIBUSB_ERROR_NO_DEVICE
        try:
            file = os.open(f"/dev/bus/usb/{busnum:03}/{devnum:03}", os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return LIBUSB_ERROR_ACCESS
        except OSError:
            return LIBUSB_ERROR_NO_DEVICE
        libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_WARNING)
        with nogil:
            code = libusb_wrap_sys_device(self._device.context, file, &self._device.handle)
        libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_NONE)
        return code

    cdef object _ask(self):
        """As Linux does (usb_get_configuration in config.c): first how long a configuration is, then all of it; and no
        more than `MAX_CONFIGURATIONS`."""
        device = self._descriptor(DEVICE_DESCRIPTOR, 0, DEVICE_SIZE)
        configurations = []
        for index in range(min(device[-1], MAX_CONFIGURATIONS) if len(device) == DEVICE_SIZE else 0):
            try:
                begin = self._descriptor(CONFIGURATION_DESCRIPTOR, index, CONFIGURATION_SIZE)
                total = max(int.from_bytes(begin[2:4], "little"), <int>CONFIGURATION_SIZE)
                configurations.append(self._descriptor(CONFIGURATION_DESCRIPTOR, index, total))
            except ClaimError:
                if not configurations:
                    raise
                break
        try:
            return parse_descriptors(device, configurations)
        except DescriptorError as error:
            raise ClaimError(f"the descriptors of the device cannot be read: {error.message}", code="descriptors")

    cdef bytes _descriptor(self, int kind, int index, uint16_t length):
        cdef int code
        cdef bytearray data = bytearray(length)
        cdef unsigned char *at = data
        with nogil:
            code = libusb_control_transfer(self._device.handle, FROM_DEVICE, GET_DESCRIPTOR,
                                           <uint16_t>(kind << 8 | index), 0, at, length, DESCRIPTOR_TIME)
        if code < 0:
            what = "device descriptor" if kind == DEVICE_DESCRIPTOR else f"configuration {index}"
            raise error(code, f"{what} cannot be read")
        return bytes(data[:code])

    @property
    def captured(self) -> bool:
        """Whether the whole device was captured from its drivers, as macOS does it."""
        return self.captures and len(self.detached) != 0

    @property
    def reset_reenumerates(self) -> bool:
        """Whether a reset makes the device leave the bus, and come back to the host's drivers under another address:
        what libusb does on macOS with a device that is not captured (darwin_reset_device)."""
        return self.captures and not self.captured

    def take(self) -> None:
        """Sends the drivers of all interfaces away, then claims all interfaces."""
        cdef bint captures = self.detaches and self.captures and not self.detached
        last_words[0] = 0
        libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_WARNING)
        try:
            found = self.interfaces()
            numbers = [each.bInterfaceNumber for each in found]
            self.lacks_setting_0 = any([each.bAlternateSetting for each in found])
            if captures:
                self._capture(numbers)
            elif self.detaches and not self.captures:
                for number in numbers:
                    self._detach(number)
            if self.captures:  # only at this level libusb tells why an interface cannot be opened
                libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_INFO)
            for number in numbers:
                self._claim(number)
            if captures and self.captured:
                self._clear_halts()
            self.complete = True
        except ClaimError as reason:
            problems = self.give_back()
            if problems:
                raise ClaimError("; ".join([reason.message, *problems]), code=reason.code) from reason
            raise
        except BaseException:
            self.give_back()
            raise
        finally:
            libusb_set_option(self._device.context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_NONE)
            last_words[0] = 0  # they explain no later error

    cdef object _capture(self, list numbers):
        """macOS: takes the whole device from its drivers.

        Root does so even if no driver has it: only a captured device is reset without being enumerated again.  It is
        left without a configuration.  libusb then sets the first one with the first claim (darwin_claim_interface), so
        another one is set here.
        """
        cdef int code, number = numbers[0] if numbers else 0
        if os.geteuid() != 0 and not any(interface_has_driver(&self._device, each) == 1 for each in numbers):
            return
        with nogil:
            code = libusb_detach_kernel_driver(self._device.handle, number)
        if code == LIBUSB_ERROR_NOT_SUPPORTED:
            return
        if code == 0 or code == LIBUSB_ERROR_NOT_FOUND:  # captured, but it cannot be opened again: darwin_restore_state
            self.detached.append(number)
        if code < 0:
            raise error(code, f"interface {number} cannot be taken from its driver")
        code = 0
        if self.configuration not in (0, self.descriptors.configurations[0].bConfigurationValue):
            with nogil:
                code = libusb_set_configuration(self._device.handle, self.configuration)
        if code < 0:
            raise error(code, f"configuration {self.configuration} cannot be set again")

    cdef object _clear_halts(self):
        """macOS: endpoints may be halted at their first use after a capture.  Stops if the device refuses."""
        cdef int code
        cdef uint8_t address
        active = self.descriptors.configuration(self.configuration)
        first = {(each.bInterfaceNumber, each.bAlternateSetting) for each in self.interfaces()}
        for each in () if active is None else active.endpoints:
            if ((each.bInterfaceNumber, each.bAlternateSetting) in first
                    and each.bmAttributes & 3 >= 2):  # bulk and interrupt, USB 2.0 table 9-13
                address = each.bEndpointAddress
                with nogil:
                    code = libusb_clear_halt(self._device.handle, address)
                if code < 0:
                    return

    cdef object _detach(self, int number):
        cdef int code
        with nogil:
            code = interface_has_driver(&self._device, number)
            if code == 1:
                code = interface_detach(&self._device, number)
                if code == 0:
                    code = 1
        if code == 1 and number not in self.detached:
            self.detached.append(number)
        elif code < 0 and code != LIBUSB_ERROR_NOT_FOUND and code != LIBUSB_ERROR_NOT_SUPPORTED:
            raise error(code, f"interface {number} cannot be taken from its driver")

    cdef object _claim(self, int number):
        """After an error the last words are those of the claim: libusb's darwin backend reports nothing behind them."""
        cdef int code
        last_words[0] = 0
        with nogil:
            code = interface_claim(&self._device, number)
        if code == LIBUSB_ERROR_BUSY and self.detaches and not self.captures:
            self._detach(number)  # a driver may have been bound since the first detach
            with nogil:
                code = interface_claim(&self._device, number)
        if code < 0:
            raise error(code, f"interface {number} cannot be claimed")
        self.held.append(number)

    def give_back(self) -> list[str]:
        """Releases all interfaces, then reattaches their drivers in the order in which they were detached.

        Returns what did not work, a sentence each; a device that is gone is no failure.  What counts is whether a
        driver has the interface in the end: one of several interfaces takes the others by itself when it is attached
        to the first (usb_driver_claim_interface, as snd-usb-audio does), and attaching it to those is then "busy".
        """
        problems = self._release()
        cdef int code, number
        if self.detached and self.lacks_setting_0 and not self.captures:
            self._make_interfaces_anew()
        failed = []
        for number in self.detached:
            with nogil:
                code = interface_attach(&self._device, number)
            # On Linux NOT_FOUND says that no driver was bound: none matches, or its probe has failed.
            if code < 0 and code != LIBUSB_ERROR_NO_DEVICE and not (code == LIBUSB_ERROR_NOT_FOUND and self.captures):
                failed.append((number, code))
        for number, code in failed:
            if interface_has_driver(&self._device, number) not in (1, LIBUSB_ERROR_NO_DEVICE):
                name = libusb_error_name(code).decode()
                problems.append(f"the kernel driver could not be reattached to interface {number} ({name}, {code})")
        self.detached.clear()
        return problems

    cdef object _make_interfaces_anew(self):
        """An interface without setting 0 is probed by no driver once one has left it: Linux wants it in setting 0 first
        (usb_unbind_interface and usb_probe_interface in drivers/usb/core/driver.c).  New ones come with the
        configuration; if that fails, the others get their drivers as always.
        """
        cdef int code, value = self.configuration
        with nogil:
            code = libusb_set_configuration(self._device.handle, -1)
            if code == 0:
                libusb_set_configuration(self._device.handle, value)

    cdef list _release(self):
        cdef int code, number
        self.complete = False
        problems = []
        for number in reversed(self.held):
            with nogil:
                code = interface_release(&self._device, number)
            if code < 0 and code != LIBUSB_ERROR_NO_DEVICE and code != LIBUSB_ERROR_NOT_FOUND:
                name = libusb_error_name(code).decode()
                problems.append(f"interface {number} cannot be released ({name}, {code})")
        self.held.clear()
        return problems

    def reset(self) -> int:
        """A bus reset; 0 or a negative Linux errno, -ENODEV if the device came back as another one, or not at all.

        libusb releases what it has claimed before, and claims it again without its drivers (op_reset_device in
        linux_usbfs.c); so is done here with the interfaces that it does not know.
        """
        cdef int code, result, number
        beyond = [number for number in self.held if number >= LIBUSB_INTERFACES]
        for number in beyond:
            with nogil:
                interface_release(&self._device, number)
            self.held.remove(number)
        with nogil:
            FORGET_ERRNO()
            code = libusb_reset_device(self._device.handle)
            result = linux_errno_of_request(code)
        if code == LIBUSB_ERROR_NOT_FOUND or code == LIBUSB_ERROR_NO_DEVICE:
            return -LINUX_ENODEV
        try:
            for number in beyond:
                self._claim(number)
        except ClaimError:
            return -LINUX_ENODEV
        return result

    def claim_again(self) -> None:
        """On macOS: releases all interfaces and claims them, as SET_CONFIGURATION does, without a request to the
        device.  There IOKit opens each interface again, and checks again whether this process may.  On Linux the open
        usbfs file is all that it takes; nothing is done.
        """
        if self.captures:
            self._release()
            self.take()

    def set_configuration(self, int value) -> int:
        """SET_CONFIGURATION for the client; 0 or a negative Linux errno.

        It is only possible with no interface claimed.  The value that is already active is sent too, and no
        SET_INTERFACE if all alternate settings are 0: that is what a native host sends (usb_reset_configuration in
        drivers/usb/core/message.c), and each interface begins afresh with alternate setting 0 (USB 2.0 section
        9.1.1.5).  Where one is not 0, Linux sends SET_INTERFACE 0 at the release before.  Another value makes new
        interfaces, which bring the host's drivers back at once, so they are sent away again.

        If the interfaces cannot be claimed again, `complete` is False afterwards, whatever is returned or raised.
        """
        cdef int code, result, active = self.configuration
        # -1: none; a few devices have a configuration 0 (usb_set_configuration in message.c)
        cdef int argument = -1 if value == 0 and self.descriptors.configuration(0) is None else value
        self._release()
        with nogil:
            FORGET_ERRNO()
            code = libusb_set_configuration(self._device.handle, argument)
            result = linux_errno_of_request(code)
        if result == 0:
            self.configuration = value
        if result == 0 and active != value and not self.captures:
            self.detached.clear()  # of interfaces that are no more
        try:
            self.take()
        except ClaimError as error:
            if error.code == "LIBUSB_ERROR_NO_DEVICE":
                return -LINUX_ENODEV
            if result == 0 or active == value or self.captures or error.code != "LIBUSB_ERROR_NOT_FOUND":
                return result or -LINUX_EBUSY
            self.configuration = 0  # Linux had left the old one before it failed: usb_set_configuration in message.c
            self.take()
        return result

    def speed(self) -> int:
        """enum libusb_speed: 1 low, 2 full, 3 high, 4 super, 5 super plus; 0 unknown."""
        return libusb_get_device_speed(libusb_get_device(self._device.handle))

    def interfaces(self) -> list[Interface]:
        """Each interface of the active configuration, with its first setting; none if there is none."""
        active = self.descriptors.configuration(self.configuration)
        return [] if active is None else list(active.initial)

    def has_setting(self, configuration: int, interface: int, alternate: int) -> bool:
        """Whether the device has this configuration and, unless `interface` is -1, this setting in it."""
        found = self.descriptors.configuration(configuration)
        return found is not None and (interface < 0 or any(
            each.bInterfaceNumber == interface and each.bAlternateSetting == alternate for each in found.interfaces))
