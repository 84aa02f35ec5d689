"""The bus of the simulated devices."""

from usbipd.protocol.constants import Speed
from usbipd.simulated.bus import SimulatedBus
from usbipd.simulated.catalog import parse_simulate


async def test_each_device_has_a_port_and_a_number_after_the_root_hub() -> None:
    bus = SimulatedBus(parse_simulate("keyboard,loopback:speed=super"))
    keyboard, loopback = await bus.list_devices()
    assert (keyboard.busid, keyboard.busnum, keyboard.devnum) == ("240-1", 240, 2)
    assert (loopback.busid, loopback.busnum, loopback.devnum) == ("240-2", 240, 3)
    assert (keyboard.speed, loopback.speed) == (Speed.FULL, Speed.SUPER)
    assert (keyboard.vendor_id, keyboard.product_id, loopback.product_id) == (0x1D6B, 0x01F2, 0x01F4)
    assert loopback.device_class == 0xFF
