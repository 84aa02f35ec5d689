"""The table of health checks, and the function that runs them.  Runs in the extension.

Checks run concurrently and with a time limit.  A check that raises becomes a finding and hides no other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from usbipd.errors import UsbipdError
from usbipd.extension import daemon_checks, host_checks
from usbipd.extension.check_context import CheckContext
from usbipd.findings import Finding, check_result, failed, steps_of
from usbipd.ipc.control_messages import CheckState, HealthResult
from usbipd.log import LIMITED

_LOG: Final = logging.getLogger(__name__)

HEALTH_TIMEOUT: Final = 4.0
"""Seconds for all checks together: the command waits for them."""
MOST_FINDINGS: Final = 24
"""Findings of one check that are shown, at most."""

_BADNESS: Final = {CheckState.FAILED: 0, CheckState.WARNING: 1, CheckState.OK: 2}

Check = Callable[[CheckContext], Awaitable[Sequence[Finding]]]
"""Checks one thing and returns its findings; none if the check does not apply."""

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("rights", host_checks.check_rights),
    ("confinement", host_checks.check_confinement),
    ("libusb", host_checks.check_libusb),
    ("devices", host_checks.check_devices),
    ("hotplug", host_checks.check_hotplug),
    ("power", host_checks.check_power),
    ("launchd", host_checks.check_launchd),
    ("macos", host_checks.check_macos),
    ("store", daemon_checks.check_store),
    ("control-socket", daemon_checks.check_control_socket),
    ("network", daemon_checks.check_server),
    ("exposure", daemon_checks.check_exposure),
    ("workers", daemon_checks.check_workers),
    ("captured", daemon_checks.check_captured),
    ("drivers", daemon_checks.check_orphans),
    ("binding", daemon_checks.check_bindings),
)
"""Every check with its name, in the order of the report."""


async def examine(
    context: CheckContext, checks: Sequence[tuple[str, Check]] = CHECKS, *, seconds: float = HEALTH_TIMEOUT
) -> HealthResult:
    """Run all checks, within `seconds`.  Raises nothing: an error becomes a finding."""
    tasks = [(name, asyncio.ensure_future(check(context))) for name, check in checks]
    try:
        await asyncio.wait([task for _name, task in tasks], timeout=seconds)
        return HealthResult(
            checks=[
                check_result(name, finding)
                for name, task in tasks
                for finding in _worst(_findings(name, task, seconds))
            ]
        )
    finally:
        for _name, task in tasks:
            task.cancel()


def _findings(name: str, task: asyncio.Future[Sequence[Finding]], seconds: float) -> Sequence[Finding]:
    if not task.done() or task.cancelled():
        return [
            failed(f"this check did not finish within {seconds:g} s", "Try again when the host is less busy.")
        ]
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, UsbipdError):
        return [failed(error.message, *steps_of(error))]
    _LOG.error("health check %s failed", name, exc_info=error, extra=LIMITED)
    return [
        failed(f"this check failed: {type(error).__name__}: {error}", "See the daemon's log for details.")
    ]


def _worst(findings: Sequence[Finding]) -> list[Finding]:
    """The worst findings first, `MOST_FINDINGS` at most, and a line that counts the rest."""
    ordered = sorted(findings, key=lambda finding: _BADNESS[finding.state])
    shown, rest = ordered[:MOST_FINDINGS], ordered[MOST_FINDINGS:]
    if rest:
        shown.append(Finding(rest[0].state, f"and {len(rest)} more, none worse"))
    return shown
