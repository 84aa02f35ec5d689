"""Tells of USB devices as libusb hears of them.  Runs in the extension, elsewhere than on Linux.

libusb's own functions are used, because `usb1.USBContext.hotplugRegisterCallback` goes deaf: it looks at the
device before it calls anybody, and if that fails, for a device that has left again, ctypes swallows the
exception and returns garbage to libusb, which takes it for the wish not to be called any more.
"""

import asyncio
import threading
from collections.abc import Callable
from ctypes import byref, c_int
from typing import Any, Final

import usb1

LONGEST_WAIT: Final = 86400
"""Seconds that libusb may wait for an event at a time: milliseconds have to fit into an int (libusb's io.c).
Its own default of 60 would wake an idle machine each minute."""
STOP_TIME: Final = 0.5
"""Seconds that the thread has to end; one that hangs in libusb ends with the process."""


class LibusbListener:
    """As `EventListener`: libusb's event loop, in a separate context, which lives and ends in a thread.

    `on_event` and `on_end` are called in that thread.  It is a daemon thread: an extension that fails need
    not wait for it.
    """

    def __init__(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="usb-hotplug", daemon=True)
        self._lock = threading.Lock()
        self._is_stopped = False
        self._interrupt: Callable[[], None] | None = None
        """Wakes the thread; None while there is no context."""

    def start(self) -> None:
        """As in `EventListener`."""
        self._thread.start()

    async def stop(self) -> None:
        """As in `EventListener`; waits `STOP_TIME` at most for the thread to end."""
        with self._lock:
            self._is_stopped = True
            if self._interrupt is not None:
                self._interrupt()
        await asyncio.to_thread(self._thread.join, STOP_TIME)

    def _run(self) -> None:
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
                return f"libusb: hotplug events stopped: {_name(libusb, code)}"
        return "stopped"


def _libusb() -> Any:
    """libusb's functions by their names.  Raises `OSError`."""
    usb1.loadLibrary()
    return usb1.libusb1


def _name(libusb: Any, code: int) -> str:
    return f"{libusb.libusb_error_name(code).decode()} ({code})"
