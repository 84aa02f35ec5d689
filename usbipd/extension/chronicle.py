"""What happens to devices: it goes into the history, and whoever watches is told.  Runs in the extension."""

import logging
from collections.abc import Callable
from typing import Any, Final

from usbipd.extension.store import Store
from usbipd.ipc.reports import HistoryEvent
from usbipd.usb.discovery import DeviceRecord

_LOG: Final = logging.getLogger(__name__)

Watcher = Callable[[], None]
"""Called when something that the status shows has changed; must not raise."""


class Chronicle:
    """Where the rest of the extension says what has happened."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: set[Watcher] = set()

    def happened(self, event: HistoryEvent, record: DeviceRecord | None = None, **details: Any) -> None:
        """Remember `event`; `details` are further fields of a `HistoryEntry`."""
        if record is not None:
            details |= {
                "busid": record.busid,
                "vendor_id": record.vendor_id,
                "product_id": record.product_id,
                "product": record.product,
            }
        self._store.record(event, **details)
        self.changed()

    def changed(self) -> None:
        """Tell those who watch that the status is another one now."""
        for watcher in list(self._watchers):
            watcher()

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher` at each change from now on."""
        self._watchers.add(watcher)
