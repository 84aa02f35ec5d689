"""The bus of the simulated devices that a daemon offers.  Runs in the extension, its devices in workers."""

from collections.abc import Mapping, Sequence
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.simulated import catalog
from usbipd.simulated.device import MANUFACTURER
from usbipd.simulated.spec import SimulatedSpec
from usbipd.usb.descriptors import parse_device
from usbipd.usb.discovery import DeviceRecord

BUSNUM: Final = 240
"""The bus on which they all are: above the numbers that hosts give to their own."""
FIRST_DEVNUM: Final = 2
"""Linux's root hubs are 1."""


class SimulatedBus:
    """A source of devices: ports 1 to n of one bus, always the same."""

    def __init__(self, specs: Sequence[SimulatedSpec]) -> None:
        self._records = [_record(port, spec) for port, spec in enumerate(specs, 1)]

    async def list_devices(self) -> list[DeviceRecord]:
        return self._records

    @property
    def problem(self) -> str | None:
        """Nothing is ever missing."""
        return None

    @property
    def left_out(self) -> Mapping[str, UsbipdError]:
        """All of them are offered."""
        return {}


def _record(port: int, spec: SimulatedSpec) -> DeviceRecord:
    model = catalog.NAMES[spec.name]
    fields = parse_device(model.device_descriptor)
    busid = f"{BUSNUM}-{port}"
    return DeviceRecord(
        busid=busid,
        busnum=BUSNUM,
        devnum=port - 1 + FIRST_DEVNUM,
        path=f"/simulated/{busid}",
        vendor_id=fields["idVendor"],
        product_id=fields["idProduct"],
        serial=None,
        device_class=fields["bDeviceClass"],
        speed=model.speed_with(spec.options),
        manufacturer=MANUFACTURER,
        product=model.product,
        simulated=spec,
    )
