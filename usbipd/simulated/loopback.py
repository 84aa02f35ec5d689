"""Simulated test device: a source, a sink and a loopback.  Runs in workers.

Only descriptors: the pump moves the data of all its endpoints itself, so that its own speed can be measured.
"""

from typing import Final

from usbipd.protocol.constants import USB_CLASS_VENDOR_SPEC, USB_ENDPOINT_XFER_BULK, Speed
from usbipd.simulated.descriptors import (
    configuration_descriptor,
    device_descriptor,
    endpoint_descriptor,
    interface_descriptor,
)
from usbipd.simulated.device import Behaviour, SimulatedDevice

SOURCE_IN: Final = 0x81
SINK_OUT: Final = 0x01
LOOPBACK_IN: Final = 0x82
LOOPBACK_OUT: Final = 0x02


class Loopback(SimulatedDevice):
    """Interface 0 gives a pattern and takes anything; interface 1 returns what is written."""

    name = "loopback"
    product = "Simulated loopback"
    speed = Speed.HIGH
    device_descriptor = device_descriptor(0x01F4, bcdUSB=0x0200, bDeviceClass=USB_CLASS_VENDOR_SPEC)
    configurations = (
        configuration_descriptor(
            interface_descriptor(0, 2, USB_CLASS_VENDOR_SPEC),
            endpoint_descriptor(SOURCE_IN, USB_ENDPOINT_XFER_BULK, 512, 0),
            endpoint_descriptor(SINK_OUT, USB_ENDPOINT_XFER_BULK, 512, 0),
            interface_descriptor(1, 2, USB_CLASS_VENDOR_SPEC),
            endpoint_descriptor(LOOPBACK_IN, USB_ENDPOINT_XFER_BULK, 512, 0),
            endpoint_descriptor(LOOPBACK_OUT, USB_ENDPOINT_XFER_BULK, 512, 0),
        ),
    )
    behaviours = {  # noqa: RUF012
        SOURCE_IN: Behaviour.SOURCE,
        SINK_OUT: Behaviour.SINK,
        LOOPBACK_IN: Behaviour.LOOPBACK,
        LOOPBACK_OUT: Behaviour.LOOPBACK,
    }
