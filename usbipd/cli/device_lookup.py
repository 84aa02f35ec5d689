"""Finds the device that the user means, and asks if several match.  Runs in the caller's process.

A name is compared with what `usbipd list` shows, ignoring case.  Only a user at a terminal is asked;
otherwise exactly one device must match.
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
"""Matches listed in an error message."""

Value = TypeVar("Value")


class Choice(NamedTuple):
    """One of several matches: its label, and a name that matches no other."""

    label: str
    name: str


def is_interactive(*, as_json: bool) -> bool:
    """Whether a user can be asked: question and answer on terminals, and no JSON."""
    streams = (sys.stdin, sys.stderr)  # None if the caller has closed one
    return not as_json and all(stream is not None and stream.isatty() for stream in streams)


def choose(question: str, choices: Sequence[Choice]) -> int:
    """Ask for one of `choices`; its index.  Raises `UsageError` for any other answer."""
    for number, choice in enumerate(choices, 1):
        say(f"{number:>3}  {choice.label}")
    print(f"{question} [1-{len(choices)}]: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:  # Ctrl-D leaves the cursor after the question
        say("")
    answer = line.strip()
    if re.fullmatch("[0-9]{1,9}", answer) and 1 <= int(answer) <= len(choices):
        return int(answer) - 1
    raise UsageError(
        f"{answer!r} is not one of the choices" if answer else "nothing was chosen",
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
    """The one of `found` that the user means; `selector`: what the user wrote, None: nothing.

    Raises `UsbipdError` if there is none, `UsageError` if there are several and no user to ask.
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
        f"{selector.text!r} matches {len(found)} {kind}s: {'; '.join(labels[:MOST_NAMED] + more)}",
        code="ambiguous",
        advice=f"name one of them: `usbipd {command} {choices[0].name}`",
    )


def no_such(kind: str, selector: Selector | None, command: str = "show") -> UsbipdError:
    """The error if no device or binding matches `selector`; None: if there is none for `command`."""
    return UsbipdError(
        f"there is no {kind} to {command}" if selector is None else f"no {kind} matches {selector.text!r}",
        code="no-device",
        advice="`usbipd list` shows all devices",
    )


def no_device_named(command: str) -> UsageError:
    """The error for a command that needs a device and names none."""
    return UsageError(f"{command} needs a device", code="usage", advice=HOW_TO_NAME)


# ---- devices -----------------------------------------------------------------------------------------------


def device_choice(device: DeviceInfo) -> Choice:
    """The choice for a device."""
    ids = hardware_id(device.vendor_id, device.product_id)
    serial = "" if device.serial is None else f" ({device.serial})"
    return Choice(f"{device.busid:<7} {ids}  {device_name(device)}{serial}", device.busid)


def matches_device(selector: Selector, device: DeviceInfo) -> bool:
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
    fitting = [device for device in devices if selector is None or matches_device(selector, device)]
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
    """The busid of the selected device; asks the extension unless it is given.  Raises as `pick`."""
    if selector is not None and selector.busid is not None:
        return selector.busid
    devices = extension.request(Command.LIST, Nothing(), ListResult).devices
    return pick_device(command, selector, devices, suitable, as_json=as_json)


def require_named(status: StatusResult, selectors: Sequence[Selector]) -> None:
    """Raises `UsbipdError` if one of `selectors` matches no device."""
    for selector in selectors:
        if not any(matches_device(selector, device) for device in status.devices):
            raise no_such("device", selector)


def only_named(status: StatusResult, selectors: Sequence[Selector]) -> StatusResult:
    """`status` with the devices that match one of `selectors`; a name may match several."""
    devices = [
        device for device in status.devices if any(matches_device(selector, device) for selector in selectors)
    ]
    return msgspec.structs.replace(status, devices=devices)


# ---- bindings ----------------------------------------------------------------------------------------------


def binding_target(binding: BindingInfo) -> UnbindParameters:
    """The parameters that remove the binding; by port, they remove all bindings of that port."""
    if binding.busid is not None:
        return UnbindParameters(busid=binding.busid)
    return UnbindParameters(
        hardware=HardwareId(vendor_id=binding.vendor_id, product_id=binding.product_id, serial=binding.serial)
    )


def pick_binding(selector: Selector | None, result: ListResult, *, as_json: bool) -> UnbindParameters:
    """The bindings that `unbind` removes: an exact hardware id, else the only match.

    All bindings of a port are removed together, so they are one choice, and a name must match all of
    them.  Raises as `pick` does.
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
        if selector is None or any(_matches_binding(selector, binding, names) for binding in bindings)
    ]
    target = pick("unbind", selector, found, as_json=as_json, kind="binding")
    if selector is not None and not all(_matches_binding(selector, each, names) for each in targets[target]):
        both = " and ".join(map(binding_name, targets[target]))
        raise UsageError(
            f"{selector.text!r} is one of several bindings of a port: {both}",
            code="ambiguous",
            advice=f"`usbipd unbind {target.busid}` removes all of them",
        )
    return target


def _name_of(target: UnbindParameters) -> str:
    """The form of DEVICE."""
    return target.busid or (hardware_text(target.hardware) if target.hardware is not None else "")


def _matches_binding(selector: Selector, binding: BindingInfo, names: dict[str, str]) -> bool:
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
    """Whether one of the names contains `text`, ignoring case."""
    part = text.casefold()
    return any(name is not None and part in name.casefold() for name in names)
