"""Sorts checks by severity and groups those that differ in the device only.

Runs in the caller's process.
"""

import re
from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from usbipd.ipc.control_messages import CheckResult, CheckState

_ORDER: Final = (CheckState.FAILED, CheckState.WARNING, CheckState.OK)
_DEVICE: Final = re.compile(
    r"(?<![\w.:/-])(?:(?P<busid>[0-9]{1,3}-[0-9]{1,2}(?:\.[0-9]{1,2})*)|[0-9a-f]{4}:[0-9a-f]{4})(?![\w./-]|:\w)"
)
"""A busid, or VID:PID."""


def problems(checks: Sequence[CheckResult]) -> list[CheckResult]:
    """The checks that are not ok."""
    return [check for check in checks if check.state is not CheckState.OK]


def grouped(checks: Sequence[CheckResult]) -> list[CheckResult]:
    """Failures, then warnings, then the rest; one check for those that differ in the device only.

    That is the first of them, with the devices of the others.
    """
    groups: dict[object, list[CheckResult]] = {}
    for check in sorted(checks, key=lambda each: _ORDER.index(each.state)):
        said = tuple(_DEVICE.sub("\0", text) for text in (check.message, *check.steps))
        groups.setdefault((check.state, check.name, said), []).append(check)
    return [_merged(group) for group in groups.values()]


def _merged(group: Sequence[CheckResult]) -> CheckResult:
    first = group[0]
    devices = dict.fromkeys(_device(check.message) for check in group)
    del devices[_device(first.message)]
    if devices:
        return replace(first, message=f"{first.message} (the same for {', '.join(devices)})")
    if len(group) > 1:
        return replace(first, message=f"{first.message} ({len(group)} times)")
    return first


def _device(message: str) -> str:
    """The device in the message: its busid, or else its VID:PID; "" if there is none."""
    found = list(_DEVICE.finditer(message))
    return next((each[0] for each in found if each["busid"]), found[0][0] if found else "")
