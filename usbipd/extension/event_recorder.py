"""Records events in the history and notifies watchers.  Runs in the extension."""

import logging
from collections.abc import Callable
from typing import Any, Final

from usbipd.extension.store import Store
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.usb.discovery import DeviceRecord

_LOG: Final = logging.getLogger(__name__)

Watcher = Callable[[], None]
"""Called when the status has changed; must not raise."""


class EventRecorder:
    """Records the events of all parts of the extension."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: set[Watcher] = set()

    def record(self, event: HistoryEvent, device: DeviceRecord | None = None, **details: Any) -> None:
        """Add `event` to the history; `details` are further fields of a `HistoryEntry`."""
        if device is not None:
            details |= {
                "busid": device.busid,
                "vendor_id": device.vendor_id,
                "product_id": device.product_id,
                "product": device.product,
            }
        self._store.record(event, **details)
        self.changed()

    def changed(self) -> None:
        """Notify the watchers that the status has changed."""
        for watcher in list(self._watchers):
            watcher()

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` at each change."""
        self._watchers.add(watcher)
