"""Checks of the daemon's parts: store, sockets, children, bindings.  Runs in the extension."""

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import Mapping
from typing import Final

import psutil

from usbipd.addresses import ListenAddress, parse_listen
from usbipd.extension.check_context import CheckContext, SharedDevice
from usbipd.extension.device import ClaimState
from usbipd.extension.liveness import silence_of
from usbipd.extension.store_file import KEPT_ASIDE
from usbipd.extension.supervisor import LONGEST_DELAY, Child
from usbipd.findings import Finding, failed, ok, steps_of, warning
from usbipd.ipc.control_messages import BindingInfo, ListResult
from usbipd.paths import writable_by_others
from usbipd.usb.identity import DeviceRule

CONNECT_TIMEOUT: Final = 1.0
"""Seconds for a connection to our own server."""

LONGEST_CALL: Final = 30.0
"""Seconds that a worker may wait for its device before it counts as hung: a reset, SET_CONFIGURATION and each
SET_INTERFACE after a session may take 5 s."""

_HOLDING: Final = frozenset({ClaimState.READY, ClaimState.ATTACHED, ClaimState.RESTORING})
"""The states in which a worker holds the device."""
_RESTART: Final = "Restart the daemon."
_RESTART_ELSEWHERE: Final = "Restart the daemon, with another --socket path if that file is not yours."


async def check_store(context: CheckContext) -> list[Finding]:
    """Whether the store is intact and writable; a repair or an old file set aside is only a warning."""
    found = [
        warning(problem, "Check the bindings with `usbipd list`, and bind what is missing.")
        for problem in context.store.problems
    ]
    found += [
        (warning if error.code == KEPT_ASIDE else failed)(error.message, *steps_of(error))
        for error in await context.store.check()
    ]
    return found or [ok("bindings, claims and history are intact")]


async def check_control_socket(context: CheckContext) -> list[Finding]:
    """Whether commands find the socket and no other user can replace it."""
    path, uid = context.control_socket, context.host.uid
    try:
        found, directory = os.lstat(path), os.lstat(path.parent)
    except OSError as error:
        return [failed(f"{error.filename}: {error.strerror}: commands cannot find the daemon", _RESTART)]
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
        return [
            failed(
                f"{path} is not the daemon's socket: it was replaced",
                f"See what it is: `ls -ld {path}`.",
                _RESTART_ELSEWHERE,
            )
        ]
    if (danger := writable_by_others(path.parent, directory, {uid})) is not None:
        return [
            failed(
                f"{danger}, who could replace the socket",
                f"See its owner and mode: `ls -ld {path.parent}`.",
                _RESTART_ELSEWHERE,
            )
        ]
    wanted = 0o666 if uid == 0 else 0o600
    mode = stat.S_IMODE(found.st_mode)
    if mode != wanted:
        return [failed(f"{path} has mode {mode:04o}, not {wanted:04o}", f"Run `chmod {wanted:o} {path}`.")]
    return [ok(f"{path} is the daemon's")]


async def check_server(context: CheckContext) -> list[Finding]:
    """Whether a server runs and answers, and every address accepts connections."""
    child = context.server.child
    if child is None or child.ended.is_set():
        return [
            failed(
                "no server is running; usbipd keeps restarting it",
                "See in the daemon's log why it exits, or why it cannot listen.",
            )
        ]
    silence = await silence_of(child)
    if silence is not None:  # the kernel still accepts connections for it
        return [_silent(child, silence, None, context.host.uid)]
    addresses = [parse_listen(text) for text in context.server.listening]
    errors = await asyncio.gather(*(_connect_error(address) for address in addresses))
    findings = [
        failed(
            f"{address} accepts no connections: {error}",
            "Check that no firewall on this host blocks it.",
            f"See what listens there: `lsof -nP -iTCP:{address.port} -sTCP:LISTEN`.",
            _RESTART,
        )
        for address, error in zip(addresses, errors, strict=True)
        if error is not None
    ]
    return findings or [ok(f"{child.label} accepts connections on {', '.join(map(str, addresses))}")]


async def _connect_error(address: ListenAddress) -> str | None:
    """Why a connection to `address` fails; None: it works.  The connection is closed at once."""
    host = ipaddress.ip_address(address.host)
    name = address.host
    if host.is_unspecified:
        name = "127.0.0.1" if host.version == 4 else "::1"
    try:
        family, kind, _protocol, _name, where = socket.getaddrinfo(
            name, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind) as connection:
            connection.setblocking(False)
            connecting = asyncio.ensure_future(asyncio.get_running_loop().sock_connect(connection, where))
            try:
                done, _pending = await asyncio.wait({connecting}, timeout=CONNECT_TIMEOUT)
                if not done:
                    return f"no answer within {CONNECT_TIMEOUT:g} s"
                connecting.result()
            finally:
                connecting.cancel()
                await asyncio.wait({connecting})  # until it no longer uses the descriptor
    except OSError as error:
        return str(error) if error.errno is None else os.strerror(error.errno)
    return None


async def check_exposure(context: CheckContext) -> list[Finding]:
    """Whether other hosts can use a device that has no access list."""
    addresses = [parse_listen(text) for text in context.server.listening]
    beyond = [str(each) for each in addresses if not ipaddress.ip_address(each.host).is_loopback]
    if not beyond:
        return [ok("only this host can connect")]
    if context.server.allow:
        return [ok(f"only {', '.join(context.server.allow)} can connect")]
    bindings = (await context.manager.survey()).bindings
    unrestricted = [binding for binding in bindings if not _is_restricted(binding, context)]
    if bindings and not unrestricted:
        return [ok("every binding has an access list")]
    what = ", ".join(str(_rule_of(binding)) for binding in unrestricted) or "any device bound later"
    return [
        warning(
            f"anyone who can reach {', '.join(beyond)} can use {what}: USB/IP has no login and no encryption",
            'Restrict the clients in usbipd.toml, for instance allow = ["192.168.1.0/24"], '
            "or start the daemon with --allow 192.168.1.0/24.",
            "Or restrict one device: `usbipd bind BUSID --allow 192.168.1.7`.",
            'Or listen on this host only, listen = ["127.0.0.1"], and have clients connect through a tunnel.',
            _RESTART,
        )
    ]


def _is_restricted(binding: BindingInfo, context: CheckContext) -> bool:
    """Whether the binding, or an `[[access]]` table that matches all its devices, restricts the clients."""
    return bool(binding.allow) or any(_includes(rule, _rule_of(binding)) for rule in context.access)


def _includes(wide: DeviceRule, narrow: DeviceRule) -> bool:
    """Whether `wide` matches every device that `narrow` matches."""
    return (
        wide.vendor_id in (None, narrow.vendor_id)
        and wide.product_id in (None, narrow.product_id)
        and wide.serial in (None, narrow.serial)
        and wide.busid in (None, narrow.busid)
    )


async def check_workers(context: CheckContext) -> list[Finding]:
    """Whether every claimed device has a worker that runs and answers."""
    holding = {
        busid: device for busid, device in context.manager.shared_devices.items() if device.state in _HOLDING
    }
    checks = (_check_worker(busid, device, context.host.uid) for busid, device in sorted(holding.items()))
    found = [finding for finding in await asyncio.gather(*checks) if finding is not None]
    return found or [ok(f"workers that answer: {len(holding)}")]


async def _check_worker(busid: str, device: SharedDevice, uid: int) -> Finding | None:
    """What is wrong with the device's worker; None: nothing."""
    worker = device.worker
    if worker is not None:
        silence = await silence_of(worker)
        if silence is not None:
            return _silent(worker, silence, device.blocked(), uid)
    if worker is None or worker.ended.is_set() or not worker.channel.is_open:
        return failed(f"no worker holds {busid}", "Wait: the next one starts automatically.")
    return None


def _silent(child: Child, seconds: float, blocked: float | None, uid: int) -> Finding:
    """The finding for a child that does not answer; `blocked`: seconds that it has waited for its device."""
    sudo = "sudo " if uid == 0 else ""
    if blocked is not None and blocked < LONGEST_CALL:
        return warning(
            f"{child.label} has been waiting for its device for {blocked:.0f} s and does not answer",
            "Wait: a request such as SET_CONFIGURATION times out after 5 s.",
            f"To end it: `usbipd detach {child.busid}`, or unplug the device.",
        )
    if _is_stopped(child):
        return failed(
            f"{child.label} is suspended (SIGSTOP or a debugger) and has not answered for {seconds:.0f} s",
            f"Resume it: `{sudo}kill -CONT {child.pid}`.",
        )
    return failed(
        f"{child.label} has not answered for {seconds:.0f} s",
        f"Kill it: `{sudo}kill -KILL {child.pid}`; another one starts automatically.",
        "If that happens again, report it to the maintainers of usbipd, with the daemon's log.",
    )


def _is_stopped(child: Child) -> bool:
    try:
        return psutil.Process(child.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False


async def check_captured(context: CheckContext) -> list[Finding]:
    """Whether the drivers of every claimed device are detached."""
    held = {busid for busid, device in context.manager.shared_devices.items() if device.state in _HOLDING}
    captured = [
        device
        for device in await context.manager.list_devices()
        if device.busid in held and not device.simulated
    ]
    if not captured:
        return [ok("no real device is claimed")]
    findings = [
        warning(
            f"{device.busid} is claimed, but {', '.join(device.drivers)} on this host holds a part of it",
            f"Run `usbipd unbind {device.busid}`, then bind it again.",
            "If that does not help, unplug the device and plug it in again.",
        )
        for device in captured
        if device.drivers
    ]
    return findings or [ok(f"detached from their drivers: {', '.join(device.busid for device in captured)}")]


async def check_orphans(context: CheckContext) -> list[Finding]:
    """Whether every device that is no longer claimed has its drivers again."""
    findings = [
        warning(
            f"{busid} has no driver: the worker that held it was killed before it could release it",
            f"Run `usbipd release {busid}`.",
            "If that does not help, unplug the device and plug it in again.",
        )
        for busid in await context.manager.orphans()
    ]
    return findings or [ok("no device was left without its drivers")]


async def check_bindings(context: CheckContext) -> list[Finding]:
    """Whether the device of each binding is plugged in and claimed."""
    listed = await context.manager.survey()
    if not listed.bindings:
        return [ok("nothing is bound")]
    shared_devices = context.manager.shared_devices
    return [
        finding for binding in listed.bindings for finding in _check_binding(binding, listed, shared_devices)
    ]


def _check_binding(
    binding: BindingInfo, listed: ListResult, shared_devices: Mapping[str, SharedDevice]
) -> list[Finding]:
    rule = _rule_of(binding)
    if binding.devices:
        return [_check_device(busid, rule, shared_devices.get(busid)) for busid in binding.devices]
    other = listed.instead_of(binding)
    if other is None:
        return [ok(f"{rule}: not plugged in")]
    ids = f"{other.vendor_id:04x}:{other.product_id:04x}"
    if (other.vendor_id, other.product_id) == (binding.vendor_id, binding.product_id):
        ids += " with another serial number"
    return [
        warning(
            f"{rule}: another device is plugged in there, {ids} ({other.product or 'unnamed device'})",
            f"Plug the bound device into {binding.busid}.",
            f"Or share the other device: `usbipd unbind {binding.busid}`, then "
            f"`usbipd bind {binding.busid}`. `usbipd list` shows both serial numbers.",
        )
    ]


def _check_device(busid: str, rule: DeviceRule, device: SharedDevice | None) -> Finding:
    where = str(rule) if rule.busid is not None else f"{rule}: {busid}"
    if device is None:
        return warning(f"{where}: plugged in, but not claimed yet", "Try again in a second.")
    if device.failure is not None:
        error = device.failure.error
        retries = f"Nothing else is needed: usbipd retries at least every {LONGEST_DELAY:g} s."
        return failed(f"{where}: {error.message}", *steps_of(error), retries)
    return ok(f"{where}: {device.state.value}")


def _rule_of(binding: BindingInfo) -> DeviceRule:
    return DeviceRule(binding.vendor_id, binding.product_id, binding.serial, binding.busid)
