"""The pump before simulated devices: what one input of its fuzzer does.  Runs in tests and fuzzers.

Invariant: that of hostile.py.  Also, no model raises, whatever a client sends; and the next client
finds the device as the first one did.
"""

from collections.abc import Callable
from typing import Any, Final

from tests.fuzz.hostile import HostileClient, Settings
from tests.fuzz.pump_input import LENGTHS, Operands, Program
from tests.unit.worker.rig import (
    BULK,
    DEVID,
    INTERRUPT,
    ISOCHRONOUS,
    Rig,
    ScriptedDevice,
)
from usbipd.simulated.catalog import NAMES, create
from usbipd.simulated.descriptors import configuration_descriptor, endpoint_descriptor, interface_descriptor
from usbipd.simulated.device import Handshake, SimulatedDevice
from usbipd.usb.descriptors import parse_configuration

GET_DEVICE_DESCRIPTOR: Final = "80 06 0001 0000 1200"
OPTIONS: Final = {"mass-storage": {"size": "1M"}}


GOLDEN: Final = configuration_descriptor(
    interface_descriptor(0, 5, 0xFF),
    endpoint_descriptor(10, ISOCHRONOUS, 512, 1),
    endpoint_descriptor(0x80 | 11, ISOCHRONOUS, 512, 1),
    endpoint_descriptor(0x80 | 12, INTERRUPT, 8, 1),
    endpoint_descriptor(13, BULK, 512, 0),
    endpoint_descriptor(0x80 | 14, BULK, 512, 0),
)


def numbered(value: int, configuration: bytes) -> bytes:
    """The same configuration with another bConfigurationValue."""
    return configuration[:5] + bytes([value]) + configuration[6:]


class FuzzedDevice(ScriptedDevice):
    """The scripted device with the endpoints that the golden vectors name, and a second configuration."""

    configurations = (ScriptedDevice.configurations[0], numbered(2, GOLDEN))


def hand_of(device: SimulatedDevice) -> Callable[[Program, Operands], None]:
    """What an act of the device is: the scripted one gets something to give or to take, the others act by
    themselves.
    """

    def script(_program: Program, operands: Operands) -> None:
        assert isinstance(device, ScriptedDevice)
        number, kind = operands.number(), operands.number()
        data = operands.take(LENGTHS[kind >> 2 & 7]) if kind & 2 else Handshake.STALL
        if kind & 1:
            answers = (Handshake.NAK, Handshake.STALL, 0, 1, number)
            device.accepts.append(answers[number % len(answers)])
            return
        device.to_read.setdefault(0x80 | number & 15, []).append(
            RuntimeError("no data") if kind == 0 else data
        )
        device.control_data = data
        if isinstance(data, bytes):
            device.iso_packets.append(data)

    return script if isinstance(device, ScriptedDevice) else lambda _program, _operands: None


def create_device(number: int) -> SimulatedDevice:
    """The scripted device, or one that usbipd ships."""
    names = list(NAMES)
    if number < 0x80:
        return FuzzedDevice()
    name = names[number % len(names)]
    return create(name, OPTIONS.get(name, {}))


def run(data: bytes, *, as_on_macos: bool = False) -> None:
    """Fails if the invariant does not hold for this input."""
    operands = Operands(data)
    device: Any = create_device(operands.number())
    rig = Rig(device, as_on_macos=as_on_macos)
    try:
        configurations = [parse_configuration(raw) for raw in device.configurations]
        settings = Settings(
            [endpoint for each in configurations for endpoint in each.endpoints],
            configurations[0].bConfigurationValue,
        )
        client = HostileClient(rig, settings, devid=DEVID)
        Program(client, settings, operands, hand_of(device)).run()
        client.end()
        if not isinstance(device, ScriptedDevice):
            assert rig.transfers.problem is None, rig.transfers.problem
        assert rig.pump.restore() == 0
        rig.attach()
        [descriptor] = rig.exchange(rig.submit(0x80, 18, setup=bytes.fromhex(GET_DEVICE_DESCRIPTOR)))
        assert descriptor.status == 0
        assert getattr(descriptor, "data", None) == device.device_descriptor
    finally:
        rig.close()
        device.close()
