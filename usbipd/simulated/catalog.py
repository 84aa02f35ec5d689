"""All simulated devices by name, and the argument of --simulate.  Used by the extension and by workers."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from usbipd.errors import UsageError
from usbipd.simulated.audio import Audio
from usbipd.simulated.camera import Camera
from usbipd.simulated.device import SimulatedDevice
from usbipd.simulated.keyboard import Keyboard
from usbipd.simulated.loopback import Loopback
from usbipd.simulated.mass_storage import MassStorage
from usbipd.simulated.serial import Serial
from usbipd.simulated.spec import SimulatedSpec

NAMES: Final[dict[str, type[SimulatedDevice]]] = {
    device.name: device for device in (MassStorage, Keyboard, Serial, Loopback, Audio, Camera)
}

MAX_SIMULATED: Final = 64
"""Devices of one --simulate: each is a process."""


def create(name: str, options: Mapping[str, str]) -> SimulatedDevice:
    """The device of this name, in its state after power-on.

    Raises `UsageError` for an unknown name, option or value, and if the file cannot be opened.
    """
    device = _find(name)
    return device(device.check_options(options))


def parse_simulate(text: str) -> list[SimulatedSpec]:
    """The devices in `NAME[:OPTION=VALUE]…[,NAME…]`, such as `mass-storage:size=1G:file=disk.img,keyboard`.

    Names may repeat; devices of one kind get different serial numbers.  Paths become absolute.  Commas and
    colons are separators, so no value may contain them.  Raises `UsageError`.
    """
    items = text.split(",")
    if len(items) > MAX_SIMULATED:
        raise UsageError(f"--simulate: {len(items)} devices, but at most {MAX_SIMULATED} are possible")
    specs = []
    count: Counter[str] = Counter()
    for item in items:
        name, *fields = item.strip().split(":")
        device = _find(name)
        count[name] += 1
        options = {"serial": device.serial_number(count[name])} | _parse_options(name, fields)
        specs.append(SimulatedSpec(name=name, options=device.check_options(options)))
    _check_distinct(specs)
    return specs


def _find(name: str) -> type[SimulatedDevice]:
    if name not in NAMES:
        raise UsageError(f"--simulate: unknown device {name!r}; known are {', '.join(NAMES)}")
    return NAMES[name]


def _parse_options(name: str, fields: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for field in fields:
        option, equals, value = field.partition("=")
        if not equals or not value:
            raise UsageError(f"--simulate: {name}: {field!r} is not OPTION=VALUE")
        if option in options:
            raise UsageError(f"--simulate: {name}: option {option!r} is repeated")
        options[option] = value
    return options


def _check_distinct(specs: list[SimulatedSpec]) -> None:
    for option in ("file", "serial"):
        values = Counter((spec.name, spec.options[option]) for spec in specs if option in spec.options)
        for (name, value), times in values.items():
            if times > 1:
                raise UsageError(f"--simulate: {times} {name} devices have the same {option} {value}")
