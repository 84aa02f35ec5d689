"""`usbipd status`, and what `usbipd-ext --status` shows: the daemon now.  Runs in the caller's process."""

import argparse
from typing import Final

from usbipd.cli.arguments import add_json_argument, add_watch_argument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import device_name, format_failures, hardware_id
from usbipd.cli.documents import StatusDocument, render
from usbipd.cli.output import emit
from usbipd.cli.subcommand import Subcommand, always
from usbipd.cli.table import Column, format_table, wrap
from usbipd.cli.terminal import terminal_width
from usbipd.cli.units import (
    format_bytes,
    format_clock,
    format_duration,
    format_time,
    short_bytes,
    short_count,
    short_latency,
)
from usbipd.ipc.control_messages import DeviceInfo, DeviceState, LoggedError, ProcessInfo, StatusResult
from usbipd.ipc.messages import Command, Nothing

ERRORS_SHOWN: Final = 5
"""Of the last errors; `--json` has all that the extension remembers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_watch_argument(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    show_status(extension, as_json=arguments.json, interval=arguments.watch, with_processes=False)
    return 0


def show_status(
    extension: ControlConnection, *, as_json: bool, interval: float | None, with_processes: bool
) -> None:
    """Print the status, once, or without end every `interval` seconds and on each change."""

    def text(status: StatusResult, width: int) -> str:
        return format_status(status, width, with_processes=with_processes)

    if interval is not None:
        from usbipd.cli.watch import view_for, watch  # here: only who watches has to wait for it

        watch(extension, view_for(text, as_json=as_json), interval)
    status = extension.request(Command.STATUS, Nothing(), StatusResult)
    emit(render(StatusDocument(status=status)) if as_json else text(status, terminal_width()))


def format_status(status: StatusResult, width: int, *, with_processes: bool) -> str:
    """The daemon in a few lines, its shared devices, its last errors, and its processes if asked for."""
    parts = [format_daemon(status, width)]
    shared = [device for device in status.devices if device.state is not DeviceState.NOT_SHARED]
    if shared:
        parts.append(format_devices(shared, width))
        parts.append(format_traffic(shared, width))
        parts.append(format_failures(shared, width))
    else:
        parts.append("No device is shared.\n")
    parts.append(format_silent(status.processes, width))
    parts.append(format_confinement(status.processes, width))
    parts.append(format_errors(status.last_errors, width))
    if with_processes:
        parts.append(format_processes(status.processes, width))
    return "\n".join(part for part in parts if part)


def format_daemon(status: StatusResult, width: int) -> str:
    """The daemon itself."""
    errors = "1 error" if status.error_count == 1 else f"{status.error_count} errors"
    return (
        wrap(
            f"usbipd {status.version}, pid {status.pid}, user {status.user}, "
            f"since {format_time(status.start_time)} ({format_duration(status.uptime)})",
            width,
        )
        + wrap(f"listening on {', '.join(status.listening) or 'nothing'}", width, "  ", first="")
        + wrap(
            f"memory {format_bytes(status.memory_usage)} in {len(status.processes)} processes, {errors}",
            width,
        )
    )


def format_devices(devices: list[DeviceInfo], width: int) -> str:
    """Shared devices: what they are, and who has them since when."""
    columns = (
        Column("BUSID"),
        Column("VID:PID"),
        Column("DEVICE", minimum=8),
        Column("SPEED"),
        Column("STATE"),
        Column("SINCE"),
        Column("CLIENT", minimum=7),
    )
    rows = [
        (
            device.busid,
            hardware_id(device.vendor_id, device.product_id),
            device_name(device, with_maker=False),
            device.speed,
            device.state.value,
            "" if device.claim_time is None else format_clock(device.claim_time),
            device.client or "",
        )
        for device in devices
    ]
    return format_table(columns, rows, width)


def format_traffic(devices: list[DeviceInfo], width: int) -> str:
    """How claimed devices are held and what went through them since; IN is what clients read.

    Of the latency, P50 and P99 are what half and 99 of 100 URBs took at most.
    """
    columns = (
        Column("BUSID"),
        Column("CLAIM", minimum=2),
        Column("URBS", right=True),
        Column("ERR", right=True),
        Column("IN", right=True),
        Column("IN/S", right=True),
        Column("OUT", right=True),
        Column("OUT/S", right=True),
        Column("P50", right=True),
        Column("P99", right=True),
    )
    rows = [_traffic(device) for device in devices if device.claim_method is not None]
    return format_table(columns, rows, width) if rows else ""


def _traffic(device: DeviceInfo) -> tuple[str, ...]:
    counters, rate, latency = device.counters, device.rate, device.latency
    return (
        device.busid,
        device.claim_method or "",
        short_count(counters.urbs) if counters else "",
        short_count(counters.errors) if counters else "",
        short_bytes(counters.bytes_in) if counters else "",
        short_bytes(rate.bytes_in) if rate else "",
        short_bytes(counters.bytes_out) if counters else "",
        short_bytes(rate.bytes_out) if rate else "",
        short_latency(latency.p50_us) if latency else "",
        short_latency(latency.p99_us) if latency else "",
    )


def format_silent(processes: list[ProcessInfo], width: int) -> str:
    """The processes that do not answer."""
    text = ""
    for process in processes:
        if process.silent_for is not None:
            who = f"{process.role}[{process.pid}]" + (f" {process.busid}" if process.busid else "")
            silence = format_duration(process.silent_for)
            text += wrap(f"{who} has not answered for {silence}: see `usbipd doctor`", width, "  ", first="")
    return text


def format_confinement(processes: list[ProcessInfo], width: int) -> str:
    """What the confinement of server and workers lacks; each reason is printed once."""
    lacking = dict.fromkeys(process.lacks for process in processes if process.lacks is not None)
    return "".join(
        wrap(f"Not fully confined: {lacks}: see `usbipd doctor`", width, "  ", first="") for lacks in lacking
    )


def format_errors(errors: list[LoggedError], width: int) -> str:
    """The newest errors that the extension has logged, the newest last."""
    if not errors:
        return ""
    return "Last errors:\n" + "".join(
        wrap(error.message, width, "  ", first=f"{format_time(error.time)}  ")
        for error in errors[-ERRORS_SHOWN:]
    )


def format_processes(processes: list[ProcessInfo], width: int) -> str:
    """Every process of the daemon, the user that it runs as, and its memory."""
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
)
