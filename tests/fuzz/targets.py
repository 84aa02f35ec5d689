"""The targets of libFuzzer by name, and their seeds.  Runs in tests and fuzzers."""

import importlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests import golden
from tests.fuzz.pump_input import ACTS, LENGTHS, REQUESTS, Program
from tests.unit.worker.rig import DEVID
from usbipd.simulated.catalog import NAMES

TARGETS: Final = ("simulated", "libusb")
CRASHERS: Final = Path(__file__).parent / "crashers"
"""Inputs that once broke an invariant, in a directory per target, under names that describe the fault."""

_SCRIPTED: Final = 0x00
_SHIPPED: Final = 0x80


def target(name: str) -> Callable[[bytes], None]:
    """The function that runs one input.  Imports only this target: `libusb` needs its fake."""
    run: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{name}_pump").run
    return run


def inputs(name: str) -> Iterator[tuple[str, bytes]]:
    """Seeds and crashers of a target, by name."""
    yield from seeds(name)
    for path in sorted((CRASHERS / name).glob("*")):
        yield path.name, path.read_bytes()


def seeds(name: str) -> Iterator[tuple[str, bytes]]:
    """The golden messages of clients, one by one and together, and acts of each kind on each device."""
    devices = [("", b"")]
    if name == "simulated":
        devices = [("scripted-", bytes([_SCRIPTED]))]
    second = _request("0009", value=2)
    messages = {each: _message(each) for each in golden.names("cmd_")}
    for label, device in devices:
        for each, message in messages.items():
            yield label + each, device + second + message
        yield label + "all", device + second + b"".join(messages.values())
    if name == "simulated":
        devices += [(f"{each}-", bytes([_shipped(each)])) for each in NAMES]
    for label, device in devices:
        yield label + "acts", device + _acts()
        yield label + "streams", device + _streams()
        yield label + "budget", device + _budget()


def _shipped(name: str) -> int:
    """The byte that chooses this device (`simulated_pump.create_device`)."""
    names = list(NAMES)
    return next(number for number in range(_SHIPPED, 0x100) if names[number % len(names)] == name)


def _act(act: Callable[[Program], None], *operands: bytes) -> bytes:
    return bytes([ACTS.index(act)]) + b"".join(operands)


def _message(name: str) -> bytes:
    message = bytearray(golden.load(name))
    message[8:12] = struct.pack("!I", DEVID)
    return _act(Program.raw, struct.pack("<H", len(message)), bytes(message))


def _request(kind: str, value: int = 0, index: int = 0, length: int = 0) -> bytes:
    number = REQUESTS.index(bytes.fromhex(kind))
    return _act(Program.control, bytes([number]), struct.pack("<HHH", value, index, length))


def _acts() -> bytes:
    """Requests, an URB for each endpoint, an UNLINK of each, and the device's turn in between."""
    acts = b""
    for request in REQUESTS:
        acts += _request(request.hex(), value=0x0100, index=1, length=0x40 if request[0] & 0x80 else 0)
    acts += _request("8006", value=0x0200, length=0x400)  # the configuration descriptor
    for kind in ("0203", "8200", "0201"):  # ENDPOINT_HALT of 0x81: set, shown, cleared
        acts += _request(kind, index=0x81, length=2 if kind == "8200" else 0)
    for endpoint in range(8):
        acts += _act(Program.submit, bytes([endpoint, 8]), bytes(2), bytes(9))
        acts += _act(Program.device, bytes([endpoint, 2, 3])) + _act(Program.deliver, b"\0\0")
        acts += _act(Program.submit, bytes([endpoint, 4]), bytes(2), bytes(9)) + _act(Program.unlink, b"\0")
    acts += _request("2303", value=4) + _act(Program.wait)  # PORT_RESET
    acts += _act(Program.unlink, b"\xe1") + _request("8006", value=0x0100, length=18)  # the UNLINK overtakes
    return acts + _act(Program.unlink, b"\xe0") + _act(Program.deliver, b"\0\0")


def _streams() -> bytes:
    """Three isochronous packets for each endpoint, in alternate setting 1, and then as bulk anything."""
    acts = _request("010b", value=1, index=1)
    for endpoint in range(1, 12):
        acts += _act(Program.submit, bytes([endpoint, 0]), bytes(2), bytes([3, 64, 0, 0, 0]))
    return acts + _act(Program.wait) + _act(Program.device, bytes([5, 0, 255])) + _act(Program.wait)


def _budget() -> bytes:
    """More than a client may hold, so that the pump stops reading until the device completes an URB."""
    acts = _act(Program.submit, bytes([2, LENGTHS.index(16 << 20)]), bytes(2)) * 4
    acts += _act(Program.unlink, b"\1") + _act(Program.deliver, b"\0\0")
    return acts + (_act(Program.device, bytes([1, 2, 0])) + _act(Program.deliver, b"\0\0")) * 4
