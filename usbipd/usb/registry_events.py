"""Notifications of USB devices from IOKit.  Runs in the extension, on macOS only."""

from collections.abc import Callable

from usbipd._iokit import DeviceListener
from usbipd.errors import UsbipdError
from usbipd.usb.daemon_thread import close_in_time


class RegistryListener:
    """`EventListener` for IOKit's notifications, which arrive on a thread of the system."""

    def __init__(self, on_event: Callable[[], None], on_end: Callable[[str], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._listener: DeviceListener | None = None

    def start(self) -> None:
        """As in `EventListener`."""
        try:
            self._listener = DeviceListener(self._on_event)
        except UsbipdError as error:
            self._on_end(f"IOKit sends no notifications of USB devices: {error.message}")
        else:
            self._on_event()

    async def stop(self) -> None:
        """As in `EventListener`."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await close_in_time(listener.close)
