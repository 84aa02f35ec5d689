"""Finds the device that is meant, and asks where several fit.  Runs in the caller's process.

A name is compared with what `usbipd list` shows, without regard to case.  Only a person at a terminal is
asked; for a program exactly one must fit.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec

from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import binding_name, device_name, hardware_id, known_name
from usbipd.cli.device_arguments import HOW_TO_NAME, Selector, hardware_text
from usbipd.cli.output import say
from usbipd.errors import UsageError, UsbipdError
from usbipd.ipc.control_messages import (
    BindingInfo,
    DeviceInfo,
    HardwareId,
    ListResult,
    StatusResult,
    UnbindParameters,
)
from usbipd.ipc.messages import Command, Nothing

MOST_NAMED: Final = 8
"""Of those that fit, in one sentence."""

Value = TypeVar("Value")


class Choice(NamedTuple):
    """One of several that fit: how it is shown, and how it is named so that no other fits."""

    label: str
    name: str


def is_interactive(*, as_json: bool) -> bool:
    """Whether a person can be asked: terminals for question and answer, and no program that reads JSON."""
    streams = (sys.stdin, sys.stderr)  # None if the caller has closed one
    return not as_json and all(stream is not None and stream.isatty() for stream in streams)


def choose(question: str, choices: Sequence[Choice]) -> int:
    """Ask which one is meant; its index.  Raises `UsageError` if the answer is none of the numbers."""
    for number, choice in enumerate(choices, 1):
        say(f"{number:>3}  {choice.label}")
    print(f"{question} [1-{len(choices)}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:  # Ctrl-D leaves the cursor behind the question
        say("")
    answer = line.strip()
    if re.fullmatch("[0-9]{1,9}", answer) and 1 <= int(answer) <= len(choices):
        return int(answer) - 1
    raise UsageError(
        f"{answer!r} is none of the numbers" if answer else "nothing was chosen",
        code="usage",
        advice=f"answer with a number from 1 to {len(choices)}, or name the device in the command",
    )


def pick(
    command: str,
    selector: Selector | None,
    found: Sequence[tuple[Choice, Value]],
    *,
    as_json: bool,
    kind: str = "device",
) -> Value:
    """The one of `found` that is meant; `selector`: what the user wrote, None if that was nothing.

    Raises `UsbipdError` if there is none, `UsageError` if there are several and no person to ask.
    """
    if not found:
        raise no_such(kind, selector, command)
    if selector is not None and len(found) == 1:
        return found[0][1]
    choices = [choice for choice, _value in found]
    if is_interactive(as_json=as_json):
        return found[choose(f"Which one to {command}?", choices)][1]
    if selector is None:
        raise no_device_named(command)
    labels = [" ".join(choice.label.split()) for choice in choices]
    more = [f"and {len(labels) - MOST_NAMED} more"] if len(labels) > MOST_NAMED else []
    raise UsageError(
        f"{selector.text!r} fits {len(found)} {kind}s: {'; '.join(labels[:MOST_NAMED] + more)}",
        code="ambiguous",
        advice=f"name one of them: `usbipd {command} {choices[0].name}`",
    )


def no_such(kind: str, selector: Selector | None, command: str = "show") -> UsbipdError:
    """The error if there is no device, or binding, that fits `selector`; None: none for `command`."""
    return UsbipdError(
        f"there is no {kind} to {command}" if selector is None else f"no {kind} fits {selector.text!r}",
        code="no-device",
        advice="`usbipd list` shows what there is",
    )


def no_device_named(command: str) -> UsageError:
    """What is wrong with a command that needs a device and names none."""
    return UsageError(f"{command} needs a device", code="usage", advice=HOW_TO_NAME)


# ---- devices -----------------------------------------------------------------------------------------------


def device_choice(device: DeviceInfo) -> Choice:
    """How a device is offered."""
    ids = hardware_id(device.vendor_id, device.product_id)
    serial = "" if device.serial is None else f" ({device.serial})"
    return Choice(f"{device.busid:<7} {ids}  {device_name(device)}{serial}", device.busid)


def fits_device(selector: Selector, device: DeviceInfo) -> bool:
    """Whether `selector` means this device."""
    if selector.busid is not None:
        return selector.busid == device.busid
    if selector.hardware is not None:
        return _is_of_kind(selector.hardware, device.vendor_id, device.product_id, device.serial)
    return is_part(selector.text, (device_name(device), device.serial))


def pick_device(
    command: str,
    selector: Selector | None,
    devices: Iterable[DeviceInfo],
    suitable: Callable[[DeviceInfo], bool] | None,
    *,
    as_json: bool,
) -> str:
    """The busid of the device that is meant.

    With `suitable`, the devices for which the command can do something: the others count only if none of
    these fits, so that the daemon says why it cannot.  Raises as `pick` does.
    """
    devices = list(devices)
    fitting = [device for device in devices if selector is None or fits_device(selector, device)]
    found = [device for device in fitting if suitable is None or suitable(device)]
    if not found and selector is not None:
        found = fitting
    return pick(
        command, selector, [(device_choice(device), device.busid) for device in found], as_json=as_json
    )


def find_busid(
    command: str,
    selector: Selector | None,
    extension: ControlConnection,
    suitable: Callable[[DeviceInfo], bool] | None,
    *,
    as_json: bool,
) -> str:
    """The busid of the device that is meant; asks the extension unless it was named.  Raises as `pick`."""
    if selector is not None and selector.busid is not None:
        return selector.busid
    devices = extension.request(Command.LIST, Nothing(), ListResult).devices
    return pick_device(command, selector, devices, suitable, as_json=as_json)


def require_named(status: StatusResult, selectors: Sequence[Selector]) -> None:
    """Raises `UsbipdError` if one of `selectors` fits no device."""
    for selector in selectors:
        if not any(fits_device(selector, device) for device in status.devices):
            raise no_such("device", selector)


def only_named(status: StatusResult, selectors: Sequence[Selector]) -> StatusResult:
    """`status` with the devices that fit one of `selectors`; a name may mean several."""
    devices = [
        device for device in status.devices if any(fits_device(selector, device) for selector in selectors)
    ]
    return msgspec.structs.replace(status, devices=devices)


# ---- bindings ----------------------------------------------------------------------------------------------


def binding_target(binding: BindingInfo) -> UnbindParameters:
    """What removes the binding; by its port, the other bindings of that port, too."""
    if binding.busid is not None:
        return UnbindParameters(busid=binding.busid)
    return UnbindParameters(
        hardware=HardwareId(vendor_id=binding.vendor_id, product_id=binding.product_id, serial=binding.serial)
    )


def pick_binding(selector: Selector | None, result: ListResult, *, as_json: bool) -> UnbindParameters:
    """What `unbind` has to remove: a rule that is named exactly, else the one that fits.

    All bindings of one port go together, so they are one choice, and a name must fit all of them.  Raises as
    `pick` does.
    """
    if selector is not None and selector.hardware is not None:
        exact = UnbindParameters(hardware=selector.hardware)
        if any(binding_target(binding) == exact for binding in result.bindings):
            return exact
    names = {device.busid: device_name(device) for device in result.devices}
    targets: dict[UnbindParameters, list[BindingInfo]] = {}
    for binding in result.bindings:
        targets.setdefault(binding_target(binding), []).append(binding)
    found = [
        (Choice(" and ".join(map(binding_name, bindings)), _name_of(target)), target)
        for target, bindings in targets.items()
        if selector is None or any(_fits_binding(selector, binding, names) for binding in bindings)
    ]
    target = pick("unbind", selector, found, as_json=as_json, kind="binding")
    if selector is not None and not all(_fits_binding(selector, each, names) for each in targets[target]):
        both = " and ".join(map(binding_name, targets[target]))
        raise UsageError(
            f"{selector.text!r} is one of several bindings of a port: {both}",
            code="ambiguous",
            advice=f"`usbipd unbind {target.busid}` removes all of them",
        )
    return target


def _name_of(target: UnbindParameters) -> str:
    """As it is written for DEVICE."""
    return target.busid or (hardware_text(target.hardware) if target.hardware is not None else "")


def _fits_binding(selector: Selector, binding: BindingInfo, names: dict[str, str]) -> bool:
    if selector.hardware is not None:
        return _is_of_kind(selector.hardware, binding.vendor_id, binding.product_id, binding.serial)
    present = [names.get(busid) for busid in binding.devices]
    own = known_name(binding.vendor_id, binding.product_id, binding.product)
    return is_part(selector.text, (own, binding.serial, *present))


def _is_of_kind(hardware: HardwareId, vendor_id: int, product_id: int, serial: str | None) -> bool:
    return (hardware.vendor_id, hardware.product_id) == (vendor_id, product_id) and hardware.serial in (
        None,
        serial,
    )


def is_part(text: str, names: Iterable[str | None]) -> bool:
    """Whether one of the names contains `text`, in upper or lower case."""
    part = text.casefold()
    return any(name is not None and part in name.casefold() for name in names)
