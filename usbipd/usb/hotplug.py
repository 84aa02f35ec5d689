"""Says when devices come or go.  Runs in the extension.

libusb calls back when a device arrives or leaves (udevd tells it on Debian, the kernel elsewhere on Linux,
IOKit on macOS).  Where it cannot hear of them, the list of devices is read again and again.  After suspend a
host enumerates anew what has lost its power: these devices leave and arrive, and nothing else is needed.

libusb's own functions are used, because `usb1.USBContext.hotplugRegisterCallback` goes deaf: it looks at the
device before it calls anybody, and if that fails, for a device that has left again, ctypes swallows the
exception and returns garbage to libusb, which takes it for the wish not to be called any more.
"""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable
from ctypes import byref, c_int
from pathlib import Path
from typing import Any, Final

import usb1

from usbipd.usb.daemon_thread import call_in_daemon_thread

_LOG: Final = logging.getLogger(__name__)

BURST: Final = 0.1
"""Seconds in which events are one change: a hub arrives with all that hangs on it."""
LATE: Final = 1.0
"""Seconds after the last event when there is one more change: drivers bind a moment after their device has
arrived, and a claim that met one of them while it did may be tried again."""
START_TIME: Final = 5.0
"""Seconds in which libusb has begun to listen; if it hangs, the list of devices is read until it has."""
STOP_TIME: Final = 0.5
"""Seconds that the thread has to end; one that hangs in libusb ends with the process."""
POLL_INTERVAL: Final = 2.0
"""Seconds between two looks at the list of devices, where libusb does not hear of them."""
LONGEST_WAIT: Final = 86400
"""Seconds that libusb may wait for an event at a time: milliseconds have to fit into an int (libusb's io.c).
Its own default of 60 would wake an idle machine each minute."""

SYSFS_DEVICES: Final = Path("/sys/bus/usb/devices")  # Linux Documentation/ABI/testing/sysfs-bus-usb
_UDEV_CONTROL: Final = "/run/udev/control"  # systemd src/udev/udev-ctrl.c; it listens there while it runs
_SO_ACCEPTCON: Final = 0x10000  # Linux include/uapi/linux/net.h: a listening socket, in /proc/net/unix


class Hotplug:
    """Calls `on_change` after devices have come or gone: in the event loop's thread, once for a burst of
    events, and once more when drivers have had time to bind.  Also once when it has begun to listen, for what
    came before."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._listener: _Listener | None = None
        self._poller: asyncio.Task[None] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self.problem: str | None = None
        """Why libusb does not tell of devices here, and what is done instead."""

    def start(self) -> None:
        """Begin; inside the running loop.  Never raises: what does not work is in `problem` soon after."""
        loop = asyncio.get_running_loop()

        def tell(callback: Callable[..., None], *arguments: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(callback, *arguments)

        self._listener = _Listener(
            lambda: tell(self._heard_by_libusb), lambda reason: tell(self._poll_instead, reason)
        )
        self._listener.start()
        self._watchdog = loop.call_later(
            START_TIME, self._poll_instead, f"libusb has not started within {START_TIME:g} s"
        )

    async def stop(self) -> None:
        """Call nobody any more, and end the thread, unless that hangs."""
        listener, self._listener = self._listener, None
        for timer in (self._soon, self._late, self._watchdog):
            if timer is not None:
                timer.cancel()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait({self._poller})
        if listener is not None:
            listener.stop()
            await asyncio.to_thread(listener.join, STOP_TIME)

    def _heard_by_libusb(self) -> None:
        assert self._watchdog is not None
        self._watchdog.cancel()
        if self._poller is not None:  # it did start in the end
            self._poller.cancel()
            self._poller = self.problem = None
        self._heard()

    def _heard(self) -> None:
        if self._listener is None:  # told before it was stopped
            return
        loop = asyncio.get_running_loop()
        if self._soon is None:
            self._soon = loop.call_later(BURST, self._change_soon)
        if self._late is not None:
            self._late.cancel()
        self._late = loop.call_later(LATE, self._on_change)

    def _change_soon(self) -> None:
        self._soon = None
        self._on_change()

    def _poll_instead(self, reason: str) -> None:
        assert self._watchdog is not None
        self._watchdog.cancel()
        if self._listener is None:
            return
        self.problem = f"{reason}; the list of devices is read every {POLL_INTERVAL:.0f} s instead"
        _LOG.warning("%s", self.problem)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        known: frozenset[object] | None = None
        while True:
            try:
                present = await call_in_daemon_thread(_signature)
            except (usb1.USBError, OSError) as error:
                _LOG.debug("cannot list devices: %s", error)
            else:
                if present != known:
                    known = present
                    self._heard()
            await asyncio.sleep(POLL_INTERVAL)


class _Listener(threading.Thread):
    """libusb's event loop, in a context of its own, which lives and dies in this thread.

    `on_event` is called here for each event and once at the beginning; `on_end` with the reason if it cannot
    listen (any more).  A daemon thread: an extension that fails need not wait for it.
    """

    def __init__(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> None:
        super().__init__(name="usb-hotplug", daemon=True)
        self._on_event = on_event
        self._on_end = on_end
        self._lock = threading.Lock()
        self._is_stopped = False
        self._interrupt: Callable[[], None] | None = None
        """Wakes the thread; None while there is no context."""

    def stop(self) -> None:
        """Make the thread end; may be called from any other one."""
        with self._lock:
            self._is_stopped = True
            if self._interrupt is not None:
                self._interrupt()

    def run(self) -> None:
        """Listen until `stop`."""
        reason = self._listen()
        if not self._is_stopped:
            self._on_end(reason)

    def _listen(self) -> str:
        """Returns why it has come to an end."""
        try:
            libusb = _libusb()
        except OSError as error:
            return f"libusb 1.0 cannot be loaded: {error}"
        if not libusb.libusb_has_capability(libusb.LIBUSB_CAP_HAS_HOTPLUG):
            return "this libusb does not tell of devices that come and go"
        if not _can_hear():
            return "udevd does not run, from which this libusb hears of devices that come and go"
        context = libusb.libusb_context_p()
        code = libusb.libusb_init_context(byref(context), None, 0)
        if code < 0:
            return f"libusb does not start: {_name(libusb, code)}"
        with self._lock:
            self._interrupt = lambda: libusb.libusb_interrupt_event_handler(context)
        try:
            return self._handle_events(libusb, context)
        finally:
            with self._lock:
                self._interrupt = None
            libusb.libusb_exit(context)

    def _handle_events(self, libusb: Any, context: Any) -> str:
        # It must not raise (see the top) and need not look at the device, of which it would hold a reference.
        def heard(_context: object, _device: object, _event: int, _data: object) -> int:
            self._on_event()
            return 0  # call again

        callback = libusb.libusb_hotplug_callback_fn_p(heard)  # libusb has it until libusb_exit
        anything = libusb.LIBUSB_HOTPLUG_MATCH_ANY
        code = libusb.libusb_hotplug_register_callback(
            context,
            libusb.LIBUSB_HOTPLUG_EVENT_DEVICE_ARRIVED | libusb.LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT,
            libusb.LIBUSB_HOTPLUG_NO_FLAGS,
            anything,
            anything,
            anything,
            callback,
            None,
            byref(c_int()),
        )
        if code < 0:
            return f"libusb does not tell of devices that come and go: {_name(libusb, code)}"
        self._on_event()
        # An interrupt that comes before libusb waits is not lost: it ends the next wait at once.
        while not self._is_stopped:
            code = libusb.libusb_handle_events_timeout(context, byref(libusb.timeval(LONGEST_WAIT, 0)))
            if code < 0 and code != libusb.LIBUSB_ERROR_INTERRUPTED:
                return f"libusb has stopped to tell of devices that come and go: {_name(libusb, code)}"
        return "stopped"


def _libusb() -> Any:
    """libusb's functions by their names.  Raises `OSError`."""
    usb1.loadLibrary()
    return usb1.libusb1


def _name(libusb: Any, code: int) -> str:
    return f"{libusb.libusb_error_name(code).decode()} ({code})"


def _can_hear(proc: Path = Path("/proc")) -> bool:
    """Whether whoever tells libusb of devices does run.

    On Linux a libusb that was built with libudev listens to what udevd sends on (linux_udev.c), another one
    to the kernel.  That udevd runs is seen by its listening socket.  It is looked up, not connected to: that
    would take root and might start udevd.  The table shows our network namespace, and udevd reaches no other.
    """
    if sys.platform != "linux" or "/libudev.so" not in (proc / "self/maps").read_text(errors="replace"):
        return True
    for line in (proc / "net/unix").read_text(errors="replace").splitlines()[1:]:
        _number, _references, _protocol, flags, _type, _state, _inode, *path = line.split(maxsplit=7)
        if path == [_UDEV_CONTROL] and int(flags, 16) & _SO_ACCEPTCON:
            return True
    return False


def _signature() -> frozenset[object]:
    """Something that differs when other devices are there.  Raises `OSError`, `usb1.USBError`."""
    if sys.platform == "linux":
        # devnum is new whenever a device is enumerated: drivers/usb/core/hub.c, choose_devnum
        return frozenset((path.parent.name, path.read_text()) for path in SYSFS_DEVICES.glob("*/devnum"))
    with usb1.USBContext() as context:
        return frozenset(
            (device.getBusNumber(), device.getDeviceAddress())
            for device in context.getDeviceList(skip_on_error=True)
        )
