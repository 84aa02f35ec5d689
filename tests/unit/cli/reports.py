"""Results of a scripted extension."""

from usbipd.ipc.control_messages import (
    BindingInfo,
    Counters,
    DeviceInfo,
    DeviceState,
    HistoryEntry,
    HistoryEvent,
    ProcessInfo,
    StatusResult,
)

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def make_device(busid: str = "3-1", **changes: object) -> DeviceInfo:
    """A shared disk, with `changes`."""
    fields: dict[str, object] = {
        "busid": busid,
        "vendor_id": 0x0781,
        "product_id": 0x5581,
        "serial": "4C530001",
        "manufacturer": "SanDisk",
        "product": "Ultra",
        "speed": "high",
        "device_class": 0,
        "drivers": ["usb-storage"],
        "simulated": False,
        "state": DeviceState.SHARED,
    }
    return DeviceInfo(**(fields | changes))  # type: ignore[arg-type]


def make_counters(**changes: object) -> Counters:
    fields: dict[str, object] = {
        "urbs": 7000,
        "bytes_in": 32 << 20,
        "bytes_out": 817,
        "errors": 3,
        "unlinks": 1,
        "in_flight": 2,
        "latency_us": [0, 5, 2],
    }
    return Counters(**(fields | changes))  # type: ignore[arg-type]


def make_binding(**changes: object) -> BindingInfo:
    """The disk in any port, not plugged in, with `changes`."""
    fields: dict[str, object] = {
        "vendor_id": 0x0781,
        "product_id": 0x5581,
        "serial": None,
        "busid": None,
        "product": "Ultra",
        "allow": [],
        "created": START,
        "created_by": "root",
        "devices": [],
    }
    return BindingInfo(**(fields | changes))  # type: ignore[arg-type]


def make_entry(number: int, event: HistoryEvent = HistoryEvent.CLAIMED, **changes: object) -> HistoryEntry:
    """An event of the disk, `number` seconds after the start, with `changes`."""
    fields: dict[str, object] = {
        "id": number,
        "time": START + number,
        "event": event,
        "busid": "3-1",
        "vendor_id": 0x0781,
        "product_id": 0x5581,
        "product": "Ultra",
    }
    return HistoryEntry(**(fields | changes))  # type: ignore[arg-type]


def make_status(devices: list[DeviceInfo], **changes: object) -> StatusResult:
    """The daemon with `devices`, with `changes`."""
    fields: dict[str, object] = {
        "version": "0.1.0",
        "pid": 4711,
        "user": "root",
        "start_time": START,
        "uptime": 7384.5,
        "listening": ["127.0.0.1:3240", "[::1]:3240"],
        "devices": devices,
        "bindings": [],
        "processes": [
            ProcessInfo(role="extension", pid=4711, user="root", memory=24 << 20),
            ProcessInfo(role="server", pid=4712, user="usbipd", memory=9 << 20),
            ProcessInfo(role="worker", pid=4713, user="usbipd", memory=None, busid="3-1"),
        ],
        "error_count": 0,
        "last_errors": [],
        "memory_usage": 33 << 20,
    }
    return StatusResult(**(fields | changes))  # type: ignore[arg-type]
