"""One device as people see it.  Runs in the extension."""

import contextlib
from typing import Final

from usbipd.extension.device import Device
from usbipd.ipc.reports import DeviceReport, DeviceState
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import USBFS
from usbipd.worker.report import latency_of

LONGEST_TEXT: Final = 1000
"""Characters of an error and of an advice that are told: a worker has had a say in it."""


def report_device(record: DeviceRecord, device: Device | None, drivers: list[str]) -> DeviceReport:
    """The device with what is known of it; `drivers` hold its interfaces on this host."""
    claimed = counters = failure = None
    if device is not None:
        claimed, counters, failure = device.claimed, device.counters(), device.failure
    if claimed is not None:
        drivers = list(drivers)
        with contextlib.suppress(ValueError):
            drivers.remove(USBFS)  # that is our own worker
    return DeviceReport(
        busid=record.busid,
        vendor_id=record.vendor_id,
        product_id=record.product_id,
        serial=record.serial,
        manufacturer=record.manufacturer,
        product=record.product,
        speed=record.speed.label,
        device_class=record.device_class,
        drivers=drivers,
        simulated=record.simulated is not None,
        state=DeviceState.NOT_SHARED if device is None else device.shown,
        client=None if device is None else device.client,
        claim_method=None if claimed is None else claimed.claim_method,
        claim_time=None if claimed is None else claimed.claim_time,
        worker_pid=None if device is None or device.worker is None else device.worker.pid,
        error=None if failure is None else failure.error.message[:LONGEST_TEXT],
        advice=None if failure is None else (failure.error.advice or "")[:LONGEST_TEXT] or None,
        next_try=None if failure is None else failure.next_try,
        counters=counters,
        rate=None if device is None else device.rate(),
        latency=None if counters is None else latency_of(counters),
    )
