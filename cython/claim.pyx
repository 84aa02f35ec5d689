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

from usbipd.errors import ClaimError
from usbipd.usb.descriptors import Endpoint, Interface
from usbipd.usb.libusb_version import MINIMUM, dotted


cdef enum:
    LONGEST_WORDS = 240

# The last message of libusb: it has the error of the host's stack, which libusb's codes lack.  One device per
# process; libusb calls from within its functions, on macOS also from a separate thread, which must not wait for the
# GIL.
cdef char last_words[LONGEST_WORDS]


cdef void keep_words(libusb_context *context, int level, const char *text) noexcept nogil:
    strncpy(last_words, text, LONGEST_WORDS - 1)


# What libusb has parsed of a device's own bytes: an array may be missing where its count is not 0, if the descriptors
# end too early.

cdef inline int settings_of(const libusb_config_descriptor *config, int i) noexcept nogil:
    """How many alternate settings of the interface `i` there are to be read."""
    if config.interface == NULL or config.interface[i].altsetting == NULL:
        return 0
    return config.interface[i].num_altsetting


cdef inline int endpoints_of(const libusb_interface_descriptor *setting) noexcept nogil:
    """How many endpoints of the setting there are to be read."""
    return 0 if setting.endpoint == NULL else setting.bNumEndpoints


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
    reason; what was taken before an error is given back first.

    as_on_macos: what is true of this system's libusb; tests say otherwise.  A detach then captures the whole device,
    and an attach ends that.  libusb counts both, so there is one of each, whatever becomes of the configuration
    meanwhile (darwin_detach_kernel_driver and darwin_attach_kernel_driver in darwin_usb.c).  Only root can capture;
    another user gets a device that no driver has.
    """

    cdef libusb_context *_context
    cdef libusb_device_handle *_handle
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

    def __cinit__(self, int busnum, int devnum, *, bint as_on_macos=sys.platform == "darwin"):
        cdef int code
        self.captures = as_on_macos
        if libusb_runtime_version() < MINIMUM:
            found, least = dotted(libusb_runtime_version()), dotted(MINIMUM)
            raise ClaimError(f"libusb {found} is too old: usbipd needs {least} or newer", code="old-libusb")
        self.detached = []
        self.held = []
        code = libusb_init(&self._context)
        if code < 0:
            raise error(code, "libusb does not start")
        last_words[0] = 0
        libusb_set_log_cb(self._context, <libusb_log_cb>keep_words, LIBUSB_LOG_CB_CONTEXT)
        self.context = PyCapsule_New(self._context, "libusb_context", NULL)
        self._open(busnum, devnum)
        if self.captures:  # libusb would open each device that arrives, and hold up its events; not every libusb can
            libusb_set_option(self._context, LIBUSB_OPTION_NO_DEVICE_DISCOVERY)
        code = libusb_get_configuration(self._handle, &self.configuration)
        if code < 0:
            raise error(code, "the device does not say which configuration is active")
        self.handle = PyCapsule_New(self._handle, "libusb_device_handle", NULL)
        self.detaches = libusb_has_capability(LIBUSB_CAP_SUPPORTS_DETACH_KERNEL_DRIVER)

    cdef object _open(self, int busnum, int devnum):
        cdef libusb_device **devices
        cdef ssize_t count = libusb_get_device_list(self._context, &devices), i
        cdef int code = LIBUSB_ERROR_NO_DEVICE
        if count < 0:
            raise error(<int>count, "libusb lists no devices")
        for i in range(count):
            if libusb_get_bus_number(devices[i]) == busnum and libusb_get_device_address(devices[i]) == devnum:
                if self.captures:  # IOKit's code; on Linux that of libusb tells as much
                    libusb_set_option(self._context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_WARNING)
                code = libusb_open(devices[i], &self._handle)
                libusb_set_option(self._context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_NONE)
                break
        libusb_free_device_list(devices, 1)
        if code < 0:
            raise error(code, f"device {devnum} of bus {busnum} cannot be opened")
        last_words[0] = 0  # a warning that is no error: a driver has the device open

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
        libusb_set_option(self._context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_WARNING)
        try:
            numbers = [i.bInterfaceNumber for i in self.interfaces() if i.bAlternateSetting == 0]
            if captures:
                self._capture(numbers)
            elif self.detaches and not self.captures:
                for number in numbers:
                    self._detach(number)
            if self.captures:  # only at this level libusb tells why an interface cannot be opened
                libusb_set_option(self._context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_INFO)
            for number in numbers:
                self._claim(number)
            if captures and self.captured:
                self._clear_halts()
            self.complete = True
        except BaseException:
            self.give_back()
            raise
        finally:
            libusb_set_option(self._context, LIBUSB_OPTION_LOG_LEVEL, <int>LIBUSB_LOG_LEVEL_NONE)
            last_words[0] = 0  # they explain no later error

    cdef object _capture(self, list numbers):
        """macOS: takes the whole device from its drivers.

        Root does so even if no driver has it: only a captured device is reset without being enumerated again.  It is
        left without a configuration.  libusb then sets the first one with the first claim (darwin_claim_interface), so
        another one is set here.
        """
        cdef libusb_config_descriptor *first
        cdef int code, number = numbers[0] if numbers else 0
        if os.geteuid() != 0 and not any(libusb_kernel_driver_active(self._handle, each) == 1 for each in numbers):
            return
        with nogil:
            code = libusb_detach_kernel_driver(self._handle, number)
        if code == LIBUSB_ERROR_NOT_SUPPORTED:
            return
        if code == 0 or code == LIBUSB_ERROR_NOT_FOUND:  # captured, but it cannot be opened again: darwin_restore_state
            self.detached.append(number)
        if code < 0:
            raise error(code, f"interface {number} cannot be taken from its driver")
        code = libusb_get_config_descriptor(libusb_get_device(self._handle), 0, &first)
        if code < 0:
            raise error(code, "the first configuration cannot be read")
        code = 0
        if self.configuration != 0 and self.configuration != first.bConfigurationValue:
            with nogil:
                code = libusb_set_configuration(self._handle, self.configuration)
        libusb_free_config_descriptor(first)
        if code < 0:
            raise error(code, f"configuration {self.configuration} cannot be set again")

    cdef object _clear_halts(self):
        """macOS: endpoints may be halted at their first use after a capture.  Stops if the device refuses."""
        cdef int code
        cdef uint8_t address
        for each in self.endpoints():
            if (each.bConfigurationValue == self.configuration and each.bAlternateSetting == 0
                    and each.bmAttributes & 3 >= 2):  # bulk and interrupt, USB 2.0 table 9-13
                address = each.bEndpointAddress
                with nogil:
                    code = libusb_clear_halt(self._handle, address)
                if code < 0:
                    return

    cdef object _detach(self, int number):
        cdef int code
        with nogil:
            code = libusb_kernel_driver_active(self._handle, number)
            if code == 1:
                code = libusb_detach_kernel_driver(self._handle, number)
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
            code = libusb_claim_interface(self._handle, number)
        if code == LIBUSB_ERROR_BUSY and self.detaches and not self.captures:
            self._detach(number)  # a driver may have been bound since the first detach
            with nogil:
                code = libusb_claim_interface(self._handle, number)
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
        failed = []
        for number in self.detached:
            with nogil:
                code = libusb_attach_kernel_driver(self._handle, number)
            # On Linux NOT_FOUND says that no driver was bound: none matches, or its probe has failed.
            if code < 0 and code != LIBUSB_ERROR_NO_DEVICE and not (code == LIBUSB_ERROR_NOT_FOUND and self.captures):
                failed.append((number, code))
        for number, code in failed:
            if libusb_kernel_driver_active(self._handle, number) not in (1, LIBUSB_ERROR_NO_DEVICE):
                name = libusb_error_name(code).decode()
                problems.append(f"the kernel driver could not be reattached to interface {number} ({name}, {code})")
        self.detached.clear()
        return problems

    cdef list _release(self):
        cdef int code, number
        self.complete = False
        problems = []
        for number in reversed(self.held):
            with nogil:
                code = libusb_release_interface(self._handle, number)
            if code < 0 and code != LIBUSB_ERROR_NO_DEVICE and code != LIBUSB_ERROR_NOT_FOUND:
                name = libusb_error_name(code).decode()
                problems.append(f"interface {number} cannot be released ({name}, {code})")
        self.held.clear()
        return problems

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
        self._release()
        with nogil:
            FORGET_ERRNO()
            code = libusb_set_configuration(self._handle, value if value else -1)
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

    def device_descriptor(self) -> dict[str, int]:
        """The fields of the device descriptor that OP_REP_IMPORT carries, by their names in USB 2.0 table 9-8."""
        cdef libusb_device_descriptor d
        cdef int code = libusb_get_device_descriptor(libusb_get_device(self._handle), &d)
        if code < 0:
            raise error(code, "the device descriptor cannot be read")
        return {
            "idVendor": d.idVendor,
            "idProduct": d.idProduct,
            "bcdDevice": d.bcdDevice,
            "bDeviceClass": d.bDeviceClass,
            "bDeviceSubClass": d.bDeviceSubClass,
            "bDeviceProtocol": d.bDeviceProtocol,
            "bNumConfigurations": d.bNumConfigurations,
        }

    def speed(self) -> int:
        """enum libusb_speed: 1 low, 2 full, 3 high, 4 super, 5 super plus; 0 unknown."""
        return libusb_get_device_speed(libusb_get_device(self._handle))

    def interfaces(self) -> list[Interface]:
        """Every alternate setting of every interface of the active configuration; none if there is none."""
        cdef libusb_config_descriptor *config
        cdef int code = libusb_get_config_descriptor_by_value(
            libusb_get_device(self._handle), <uint8_t>self.configuration, &config)
        if code == LIBUSB_ERROR_NOT_FOUND:
            return []
        if code < 0:
            raise error(code, "the active configuration cannot be read")
        found = []
        cdef const libusb_interface_descriptor *d
        cdef int i, k
        for i in range(config.bNumInterfaces):
            for k in range(settings_of(config, i)):
                d = &config.interface[i].altsetting[k]
                found.append(Interface(d.bInterfaceNumber, d.bAlternateSetting, d.bInterfaceClass,
                                       d.bInterfaceSubClass, d.bInterfaceProtocol))
        libusb_free_config_descriptor(config)
        return found

    def endpoints(self) -> list[Endpoint]:
        """Every endpoint of every setting of every configuration."""
        cdef libusb_config_descriptor *config
        cdef const libusb_interface_descriptor *d
        cdef const libusb_endpoint_descriptor *e
        cdef int code, n, i, k, m
        found = []
        for n in range(self.device_descriptor()["bNumConfigurations"]):
            code = libusb_get_config_descriptor(libusb_get_device(self._handle), n, &config)
            if code < 0:
                raise error(code, f"configuration {n} cannot be read")
            for i in range(config.bNumInterfaces):
                for k in range(settings_of(config, i)):
                    d = &config.interface[i].altsetting[k]
                    for m in range(endpoints_of(d)):
                        e = &d.endpoint[m]
                        found.append(Endpoint(config.bConfigurationValue, d.bInterfaceNumber, d.bAlternateSetting,
                                              e.bEndpointAddress, e.bmAttributes, e.wMaxPacketSize, e.bInterval))
            libusb_free_config_descriptor(config)
        return found
