"""`usbipd status` and `usbipd-ext --status`: the daemon now.  Runs in the caller's process."""

import argparse
import re
import shlex
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.arguments import add_color_argument, add_json_argument, add_watch_argument, interval
from usbipd.cli.colour import Paint, paint_for, plain
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import device_name, format_failures, hardware_id
from usbipd.cli.device_arguments import Selector, parse_device
from usbipd.cli.device_lookup import matches_device, only_named, require_named
from usbipd.cli.documents import StatusDocument, render
from usbipd.cli.output import emit
from usbipd.cli.subcommand import Subcommand, always
from usbipd.cli.table import Column, format_table, wrap
from usbipd.cli.units import (
    format_bytes,
    format_duration,
    format_time,
    short_bytes,
    short_count,
    short_latency,
    short_moment,
)
from usbipd.errors import UsageError
from usbipd.ipc.control_messages import DeviceInfo, DeviceState, LoggedError, ProcessInfo, StatusResult
from usbipd.ipc.messages import Command, Nothing

_ORDER: Final = (DeviceState.FAILED, DeviceState.ATTACHED, DeviceState.SHARED)
"""The states shown, in this order: first those that need attention, then those in use."""
ERRORS_SHOWN: Final = 5
"""The last errors shown; `--json` has all that the extension keeps."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*",
        type=parse_device,
        help="only this device: busid, VID:PID, VID:PID:SERIAL or part of the name (default: all shared "
        "devices)",
    )
    add_watch_argument(parser, _watch_interval)
    add_color_argument(parser)
    add_json_argument(parser)


def _watch_interval(text: str) -> float:
    """Argument type: as `interval`, but the error for a word says where a device goes."""
    try:
        return interval(text)
    except argparse.ArgumentTypeError as error:
        if re.fullmatch("[0-9.]*", text):
            raise
        advice = f"a device goes before the option: `usbipd status {shlex.quote(text)} --watch`"
        raise UsageError(f"--watch: {error}", code="usage", advice=advice) from error


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    show_status(
        extension,
        as_json=arguments.json,
        interval=arguments.watch,
        paint=paint_for(arguments.color),
        with_processes=False,
        devices=list(dict.fromkeys(arguments.devices)),
    )
    return 0


def show_status(
    extension: ControlConnection,
    *,
    as_json: bool,
    interval: float | None,
    paint: Paint,
    with_processes: bool,
    devices: Sequence[Selector] = (),
) -> None:
    """Print the status: once, or every `interval` seconds and at each change, until the caller ends it.

    `devices` limits the output to these.  Raises `UsbipdError` if one does not exist, unless watching.
    """

    def text(status: StatusResult, width: int) -> str:
        others = [each for each in status.devices if each.state is DeviceState.NOT_SHARED] if devices else []
        absent = [
            each for each in devices if not any(matches_device(each, device) for device in status.devices)
        ]
        note = "".join(f"{device.busid} is not shared.\n" for device in others)
        note += "".join(f"No device matches {each.text!r}.\n" for each in absent)
        return format_status(status, width, paint, with_processes=with_processes, unshared=note)

    def chosen(status: StatusResult) -> StatusResult:
        return only_named(status, devices) if devices else status

    if interval is not None:
        from usbipd.cli.watch import view_for, watch  # here: only --watch needs it

        watch(extension, view_for(text, as_json=as_json), interval, chosen)
        return
    status = extension.request(Command.STATUS, Nothing(), StatusResult)
    require_named(status, devices)
    status = chosen(status)
    emit(render(StatusDocument(status=status)) if as_json else text(status, get_terminal_size().columns))


def format_status(
    status: StatusResult, width: int, paint: Paint = plain, *, with_processes: bool, unshared: str = ""
) -> str:
    """The daemon in a few lines, its shared devices, its last errors and, optionally, its processes.

    `unshared`: lines about requested devices that are not shared or do not exist.
    """
    parts = [format_daemon(status, width)]
    shared = [device for device in status.devices if device.state in _ORDER]
    if shared:
        shared.sort(key=lambda device: _ORDER.index(device.state))
        parts.append(format_devices(shared, width, paint))
        parts.append(format_failures(shared, width))
    if unshared or not shared:
        parts.append(unshared or "No device is shared.\n")
    parts.append(format_silent(status.processes, width))
    parts.append(format_confinement(status.processes, width))
    parts.append(format_errors(status.last_errors, width))
    if with_processes:
        parts.append(format_processes(status.processes, width))
    return "\n".join(part for part in parts if part)


def format_daemon(status: StatusResult, width: int) -> str:
    """The daemon itself."""
    count = len(status.processes)
    processes = "1 process" if count == 1 else f"{count} processes"
    errors = "1 error" if status.error_count == 1 else f"{status.error_count} errors"
    return (
        wrap(
            f"usbipd {status.version}, pid {status.pid}, user {status.user}, "
            f"since {format_time(status.start_time)} ({format_duration(status.uptime)})",
            width,
        )
        + wrap(f"listening on {', '.join(status.listening) or 'nothing'}", width, "  ", first="")
        + wrap(
            f"memory {format_bytes(status.memory_usage)} in {processes}, {errors}",
            width,
        )
    )


_COLUMNS: Final = (
    Column("BUSID"),
    Column("VID:PID", rank=5),
    Column("STATE", state=True),
    Column("DEVICE", minimum=8),
    Column("SPEED", rank=6),
    Column("SINCE"),
    Column("CLIENT", minimum=9),
    Column("SINCE"),
    Column("IN", right=True, rank=1),
    Column("OUT", right=True, rank=1),
    Column("ERR", right=True, rank=2),
    Column("P50", right=True, rank=8),
    Column("P99", right=True, rank=3),
    Column("TOTAL IN", right=True, rank=4),
    Column("TOTAL OUT", right=True, rank=4),
    Column("URBS", right=True, rank=7),
    Column("CLAIM", rank=9),
)


def format_devices(devices: list[DeviceInfo], width: int, paint: Paint = plain) -> str:
    """Shared devices: what they are, since when they are claimed, who uses them since when, and what goes
    through.

    IN is what clients read; P50 and P99 are what half and 99 of 100 URBs took at most.
    """
    return format_table(_COLUMNS, [_row(device) for device in devices], width, paint)


def _row(device: DeviceInfo) -> tuple[str, ...]:
    counters, rate, latency = device.counters, device.rate, device.latency
    return (
        device.busid,
        hardware_id(device.vendor_id, device.product_id),
        device.state.value,
        device_name(device, with_maker=False),
        device.speed,
        "" if device.claim_time is None else short_moment(device.claim_time),
        device.client or "",
        "" if device.attach_time is None else short_moment(device.attach_time),
        f"{short_bytes(rate.bytes_in)}/s" if rate else "",
        f"{short_bytes(rate.bytes_out)}/s" if rate else "",
        short_count(counters.errors) if counters else "",
        short_latency(latency.p50_us) if latency else "",
        short_latency(latency.p99_us) if latency else "",
        short_bytes(counters.bytes_in) if counters else "",
        short_bytes(counters.bytes_out) if counters else "",
        short_count(counters.urbs) if counters else "",
        device.claim_method or "",
    )


def format_silent(processes: list[ProcessInfo], width: int) -> str:
    """The unresponsive processes."""
    text = ""
    for process in processes:
        if process.silent_for is not None:
            who = f"{process.role}[{process.pid}]" + (f" {process.busid}" if process.busid else "")
            silence = format_duration(process.silent_for)
            text += wrap(f"{who} has not answered for {silence}: see `usbipd doctor`", width, "  ", first="")
    return text


def format_confinement(processes: list[ProcessInfo], width: int) -> str:
    """What the confinement of server and workers lacks, each reason once."""
    lacking = dict.fromkeys(process.lacks for process in processes if process.lacks is not None)
    return "".join(
        wrap(f"Not fully confined: {lacks}: see `usbipd doctor`", width, "  ", first="") for lacks in lacking
    )


def format_errors(errors: list[LoggedError], width: int) -> str:
    """The last errors that the extension logged, the newest last."""
    if not errors:
        return ""
    return "Last errors:\n" + "".join(
        wrap(error.message, width, "  ", first=f"{format_time(error.time)}  ")
        for error in errors[-ERRORS_SHOWN:]
    )


def format_processes(processes: list[ProcessInfo], width: int) -> str:
    """Every process of the daemon with its user and memory."""
    columns = (
        Column("PROCESS"),
        Column("PID", right=True),
        Column("USER", minimum=8),
        Column("MEMORY", right=True),
        Column("BUSID"),
    )
    rows = [
        (
            process.role,
            str(process.pid),
            process.user,
            "" if process.memory is None else format_bytes(process.memory),
            process.busid or "",
        )
        for process in processes
    ]
    return format_table(columns, rows, width)


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=always,
    run=run,
    usage="[OPTIONS] [DEVICE...]",
    examples=(
        ("show the shared devices, their clients and traffic", "usbipd status"),
        ("show some devices only", "usbipd status 1-1 ultra"),
        ("refresh continuously", "usbipd status --watch"),
    ),
)
