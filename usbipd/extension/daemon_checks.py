"""Checks of the daemon's own parts: store, sockets, children, bindings.  Runs in the extension."""

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
"""Seconds for a connection to ourselves."""

LONGEST_CALL: Final = 30.0
"""Seconds that a worker may wait for its device before it counts as hung: a reset, SET_CONFIGURATION and each
SET_INTERFACE after a session may take 5 s."""

_HOLDING: Final = frozenset({ClaimState.READY, ClaimState.ATTACHED, ClaimState.RESTORING})
"""What a claim is doing while its worker holds the device."""
_START_AGAIN: Final = "End the daemon and start it again."
_START_ELSEWHERE: Final = (
    "Start the daemon again, with another place for its socket (--socket) if that is not yours."
)


async def check_store(context: CheckContext) -> list[Finding]:
    """Whether what it keeps is whole and can be written; what was mended or kept aside is but a warning."""
    found = [
        warning(problem, "See with `usbipd list` that every binding is there, and bind what is missing.")
        for problem in context.store.problems
    ]
    found += [
        (warning if error.code == KEPT_ASIDE else failed)(error.message, *steps_of(error))
        for error in await context.store.check()
    ]
    return found or [ok("bindings, claims and history are whole")]


async def check_control_socket(context: CheckContext) -> list[Finding]:
    """Whether people find it and nobody else can put one of his own in its place."""
    path, uid = context.control_socket, context.host.uid
    try:
        found, directory = os.lstat(path), os.lstat(path.parent)
    except OSError as error:
        return [failed(f"{error.filename}: {error.strerror}: no new command finds the daemon", _START_AGAIN)]
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
        return [
            failed(
                f"{path} is not our socket: it was replaced",
                f"See what it is: `ls -ld {path}`.",
                _START_ELSEWHERE,
            )
        ]
    if (danger := writable_by_others(path.parent, directory, {uid})) is not None:
        return [
            failed(
                f"{danger}, who could put another socket there",
                f"See whose it is: `ls -ld {path.parent}`.",
                _START_ELSEWHERE,
            )
        ]
    wanted = 0o666 if uid == 0 else 0o600
    mode = stat.S_IMODE(found.st_mode)
    if mode != wanted:
        return [failed(f"{path} has mode {mode:04o}, not {wanted:04o}", f"Run `chmod {wanted:o} {path}`.")]
    return [ok(f"{path} is ours")]


async def check_server(context: CheckContext) -> list[Finding]:
    """Whether a server lives and answers, and every address takes connections."""
    child = context.server.child
    if child is None or child.ended.is_set():
        return [
            failed(
                "no server runs; another one is started again and again",
                "Read in the daemon's log why it ends, or why it cannot listen.",
            )
        ]
    silence = await silence_of(child)
    if silence is not None:  # the kernel still accepts connections for it
        return [_silent(child, silence, None, context.host.uid)]
    addresses = [parse_listen(text) for text in context.server.listening]
    errors = await asyncio.gather(*(_connect_error(address) for address in addresses))
    findings = [
        failed(
            f"{address} takes no connections: {error}",
            "See that no firewall of this host blocks it.",
            f"See who listens there: `lsof -nP -iTCP:{address.port} -sTCP:LISTEN`.",
            _START_AGAIN,
        )
        for address, error in zip(addresses, errors, strict=True)
        if error is not None
    ]
    return findings or [ok(f"{child.label} takes connections on {', '.join(map(str, addresses))}")]


async def _connect_error(address: ListenAddress) -> str | None:
    """Why nobody can connect there; None: one can.  The connection is closed at once."""
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
                await asyncio.wait({connecting})  # it lets go of the descriptor before that is closed
    except OSError as error:
        return str(error) if error.errno is None else os.strerror(error.errno)
    return None


async def check_exposure(context: CheckContext) -> list[Finding]:
    """Whether more than this host can use a device without that somebody said who may."""
    addresses = [parse_listen(text) for text in context.server.listening]
    beyond = [str(each) for each in addresses if not ipaddress.ip_address(each.host).is_loopback]
    if not beyond:
        return [ok("only this host can connect")]
    if context.server.allow:
        return [ok(f"only {', '.join(context.server.allow)} may connect")]
    bindings = (await context.manager.survey()).bindings
    unrestricted = [binding for binding in bindings if not _is_restricted(binding, context)]
    if bindings and not unrestricted:
        return [ok("each binding says who may use its device")]
    what = ", ".join(str(_rule_of(binding)) for binding in unrestricted) or "what will be bound"
    return [
        warning(
            f"whoever reaches {', '.join(beyond)} may use {what}: USB/IP has neither login nor encryption",
            'Write who may connect into usbipd.toml, for instance allow = ["192.168.1.0/24"], '
            "or start the daemon with --allow 192.168.1.0/24.",
            "Or say it for one device: `usbipd bind BUSID --allow 192.168.1.7`.",
            'Or listen on this host only, listen = ["127.0.0.1"], and let clients come through a tunnel.',
            _START_AGAIN,
        )
    ]


def _is_restricted(binding: BindingInfo, context: CheckContext) -> bool:
    """Whether the binding, or a table of the configuration that fits all its devices, says who may."""
    return bool(binding.allow) or any(_includes(rule, _rule_of(binding)) for rule in context.access)


def _includes(wide: DeviceRule, narrow: DeviceRule) -> bool:
    """Whether `wide` fits every device that `narrow` fits."""
    return (
        wide.vendor_id in (None, narrow.vendor_id)
        and wide.product_id in (None, narrow.product_id)
        and wide.serial in (None, narrow.serial)
        and wide.busid in (None, narrow.busid)
    )


async def check_workers(context: CheckContext) -> list[Finding]:
    """Whether everything that we hold has a worker that lives and answers."""
    holding = {
        busid: device for busid, device in context.manager.shared_devices.items() if device.state in _HOLDING
    }
    looks = (_look_at_worker(busid, device, context.host.uid) for busid, device in sorted(holding.items()))
    found = [finding for finding in await asyncio.gather(*looks) if finding is not None]
    return found or [ok(f"workers that answer: {len(holding)}")]


async def _look_at_worker(busid: str, device: SharedDevice, uid: int) -> Finding | None:
    """What is wrong with it; None: nothing."""
    worker = device.worker
    if worker is not None:
        silence = await silence_of(worker)
        if silence is not None:
            return _silent(worker, silence, device.blocked(), uid)
    if worker is None or worker.ended.is_set() or not worker.channel.is_open:
        return failed(f"no worker holds {busid}", "Wait: the next one starts automatically.")
    return None


def _silent(child: Child, seconds: float, blocked: float | None, uid: int) -> Finding:
    """What to report of a child that does not answer; `blocked`: how long it has waited for its device."""
    sudo = "sudo " if uid == 0 else ""
    if blocked is not None and blocked < LONGEST_CALL:
        return warning(
            f"{child.label} has been waiting for its device for {blocked:.0f} s and answers nothing else",
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
        "If that happens again, send the log of the daemon to its maintainers.",
    )


def _is_stopped(child: Child) -> bool:
    try:
        return psutil.Process(child.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False


async def check_captured(context: CheckContext) -> list[Finding]:
    """Whether what we hold is really off its drivers."""
    held = {busid for busid, device in context.manager.shared_devices.items() if device.state in _HOLDING}
    captured = [
        device
        for device in await context.manager.list_devices()
        if device.busid in held and not device.simulated
    ]
    if not captured:
        return [ok("no real device is taken from its drivers")]
    findings = [
        warning(
            f"{device.busid} is claimed, and {', '.join(device.drivers)} of this host has a part of it",
            f"Run `usbipd unbind {device.busid}`, then bind it again.",
            "If that changes nothing, unplug the device and plug it in again.",
        )
        for device in captured
        if device.drivers
    ]
    return findings or [ok(f"taken from their drivers: {', '.join(device.busid for device in captured)}")]


async def check_orphans(context: CheckContext) -> list[Finding]:
    """Whether every device that we have released, or lost, is back with its drivers."""
    findings = [
        warning(
            f"{busid} has no driver: the worker that held it was killed before it could release it",
            f"Run `usbipd release {busid}`.",
            "If that changes nothing, unplug the device and plug it in again.",
        )
        for busid in await context.manager.orphans()
    ]
    return findings or [ok("no device was left without its drivers")]


async def check_bindings(context: CheckContext) -> list[Finding]:
    """What has become of each binding."""
    listed = await context.manager.survey()
    if not listed.bindings:
        return [ok("nothing is bound")]
    shared_devices = context.manager.shared_devices
    return [
        finding
        for binding in listed.bindings
        for finding in _look_at_binding(binding, listed, shared_devices)
    ]


def _look_at_binding(
    binding: BindingInfo, listed: ListResult, shared_devices: Mapping[str, SharedDevice]
) -> list[Finding]:
    rule = _rule_of(binding)
    if binding.devices:
        return [_look_at_device(busid, rule, shared_devices.get(busid)) for busid in binding.devices]
    other = listed.instead_of(binding)
    if other is None:
        return [ok(f"{rule}: not plugged in")]
    ids = f"{other.vendor_id:04x}:{other.product_id:04x}"
    if (other.vendor_id, other.product_id) == (binding.vendor_id, binding.product_id):
        ids += " with another serial number"
    return [
        warning(
            f"{rule}: another device is there, {ids} ({other.product or 'unnamed device'})",
            f"Plug the bound device into {binding.busid}.",
            f"Or share what is there now: `usbipd unbind {binding.busid}`, then "
            f"`usbipd bind {binding.busid}`. `usbipd list` shows both serial numbers.",
        )
    ]


def _look_at_device(busid: str, rule: DeviceRule, device: SharedDevice | None) -> Finding:
    where = str(rule) if rule.busid is not None else f"{rule}: {busid}"
    if device is None:
        return warning(f"{where}: plugged in, and not claimed yet", "Try again in a second.")
    if device.failure is not None:
        error = device.failure.error
        again = f"Nothing else is needed: it is tried again by itself, at least every {LONGEST_DELAY:g} s."
        return failed(f"{where}: {error.message}", *steps_of(error), again)
    return ok(f"{where}: {device.state.value}")


def _rule_of(binding: BindingInfo) -> DeviceRule:
    return DeviceRule(binding.vendor_id, binding.product_id, binding.serial, binding.busid)
