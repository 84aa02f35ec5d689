"""`usbipd status`, and what `usbipd-ext --status` shows: the daemon now.  Runs in the caller's process."""

import argparse

from usbipd.cli.connection import ControlConnection
from usbipd.cli.device import device_name
from usbipd.cli.documents import StatusDocument, render
from usbipd.cli.outcome import emit
from usbipd.cli.table import Column, format_bytes, format_duration, format_table, printable, terminal_width
from usbipd.cli.verb import Verb, add_json_argument, always
from usbipd.ipc.messages import Command, DeviceReport, DeviceState, Nothing, ProcessReport, StatusResult


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    show_status(extension, as_json=arguments.json, with_processes=False)
    return 0


def show_status(extension: ControlConnection, *, as_json: bool, with_processes: bool) -> None:
    status = extension.request(Command.STATUS, Nothing(), StatusResult)
    if as_json:
        emit(render(StatusDocument(status=status)))
    else:
        emit(format_status(status, terminal_width(), with_processes=with_processes))


def format_status(status: StatusResult, width: int, *, with_processes: bool) -> str:
    """The daemon in a few lines, then its shared devices, then its processes if asked for."""
    parts = [
        f"usbipd {status.version}: pid {status.pid}, user {status.user}, "
        f"up {format_duration(status.uptime)}, memory {format_bytes(status.memory_usage)}, "
        f"errors {status.error_count}\n"
        f"listening on: {', '.join(status.listening) or 'nothing'}\n"
    ]
    shared = [device for device in status.devices if device.state is not DeviceState.NOT_SHARED]
    parts.append(format_devices(shared, width) if shared else "No device is shared.\n")
    if with_processes:
        parts.append(format_processes(status.processes, width))
    return "\n".join(parts)


def format_devices(devices: list[DeviceReport], width: int) -> str:
    """Shared devices with their client and what went through; bytes in are those that the client read."""
    columns = (
        Column("BUSID"),
        Column("STATE"),
        Column("DEVICE", minimum=8),
        Column("CLIENT", minimum=9),
        Column("IN", right=True),
        Column("OUT", right=True),
        Column("ERRORS", right=True),
    )
    rows = [
        (
            device.busid,
            device.state.value,
            device_name(device, with_maker=False),
            device.client or "",
            format_bytes(device.counters.bytes_in) if device.counters else "",
            format_bytes(device.counters.bytes_out) if device.counters else "",
            str(device.counters.errors) if device.counters else "",
        )
        for device in devices
    ]
    faults = [f"{device.busid}: {printable(device.error)}\n" for device in devices if device.error]
    return format_table(columns, rows, width) + "".join(faults)


def format_processes(processes: list[ProcessReport], width: int) -> str:
    """Every process of the daemon and the user that it runs as."""
    columns = (Column("PROCESS"), Column("PID", right=True), Column("USER", minimum=8), Column("BUSID"))
    rows = [(process.role, str(process.pid), process.user, process.busid or "") for process in processes]
    return format_table(columns, rows, width)


VERB = Verb(
    name="status",
    summary="show what is shared, with whom, and how the daemon is",
    add_arguments=add_json_argument,
    requires_extension=always,
    run=run,
)
