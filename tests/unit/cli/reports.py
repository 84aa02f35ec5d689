"""What a scripted extension reports."""

from usbipd.ipc.messages import Counters, DeviceReport, DeviceState, ProcessReport, StatusResult


def make_device(busid: str = "3-1", **changes: object) -> DeviceReport:
    """A shared disk, or what `changes` makes of it."""
    fields: dict[str, object] = {
        "busid": busid,
        "vendor_id": 0x0781,
        "product_id": 0x5581,
        "manufacturer": "SanDisk",
        "product": "Ultra",
        "speed": "high",
        "device_class": 0,
        "drivers": ["usb-storage"],
        "simulated": False,
        "state": DeviceState.SHARED,
    }
    return DeviceReport(**(fields | changes))  # type: ignore[arg-type]


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


def make_status(devices: list[DeviceReport]) -> StatusResult:
    return StatusResult(
        version="0.1.0",
        pid=4711,
        user="root",
        start_time=1_700_000_000.0,
        uptime=7384.5,
        listening=["127.0.0.1:3240", "[::1]:3240"],
        devices=devices,
        processes=[
            ProcessReport(role="extension", pid=4711, user="root"),
            ProcessReport(role="server", pid=4712, user="usbipd"),
            ProcessReport(role="worker", pid=4713, user="usbipd", busid="3-1"),
        ],
        error_count=0,
        memory_usage=24 << 20,
    )
