"""One device as people see it.  Runs in the extension."""

import contextlib
from typing import Final

from usbipd.counters import latency_of
from usbipd.extension.claim import Claim
from usbipd.ipc.reports import DeviceReport, DeviceState
from usbipd.usb.discovery import DeviceRecord
from usbipd.usb.ownership import USBFS

LONGEST_TEXT: Final = 1000
"""Characters of an error and of an advice that are told: a worker has had a say in it."""


def report_device(record: DeviceRecord, claim: Claim | None, drivers: list[str]) -> DeviceReport:
    """The device with what is known of it; `drivers` hold its interfaces on this host."""
    device = counters = failure = None
    if claim is not None:
        device, counters, failure = claim.device, claim.counters(), claim.failure
    if device is not None:
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
        state=DeviceState.NOT_SHARED if claim is None else claim.shown,
        client=None if claim is None else claim.client,
        claim_method=None if device is None else device.claim_method,
        claim_time=None if device is None else device.claim_time,
        worker_pid=None if claim is None or claim.worker is None else claim.worker.pid,
        error=None if failure is None else failure.error.message[:LONGEST_TEXT],
        advice=None if failure is None else (failure.error.advice or "")[:LONGEST_TEXT] or None,
        next_try=None if failure is None else failure.next_try,
        counters=counters,
        rate=None if claim is None else claim.rate(),
        latency=None if counters is None else latency_of(counters),
    )
