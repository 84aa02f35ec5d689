"""`usbipd list`: the devices of this machine, or those of another one.  Runs in the caller's process."""

import argparse
from shutil import get_terminal_size
from typing import Final

from usbipd.cli.arguments import add_color_argument, add_json_argument, host_and_port, seconds
from usbipd.cli.colour import Paint, paint_for, plain
from usbipd.cli.connection import ANSWER_TIMEOUT, ControlConnection
from usbipd.cli.device import device_name, device_user, format_failures, hardware_id, known_name
from usbipd.cli.documents import ListDocument, RemoteDevice, RemoteInterface, RemoteListDocument, render
from usbipd.cli.output import emit, say
from usbipd.cli.remote import fetch_devlist
from usbipd.cli.subcommand import Subcommand
from usbipd.cli.table import Column, format_table, wrap
from usbipd.cli.usb_class import class_name, count_classes
from usbipd.ipc.control_messages import BindingInfo, DeviceInfo, LeftOutInfo, ListResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.protocol.constants import Speed
from usbipd.protocol.op import UsbDevice

REMOTE_TIMEOUT: Final = 5.0
"""Seconds; the default of --timeout."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--remote",
        metavar="HOST[:PORT]",
        type=host_and_port,
        help="ask this USB/IP server instead; an IPv6 address with a port is written [ADDRESS]:PORT",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        help="how long to wait for an answer "
        f"(default: {ANSWER_TIMEOUT:g}, with --remote {REMOTE_TIMEOUT:g})",
    )
    add_color_argument(parser)
    add_json_argument(parser)


def requires_extension(arguments: argparse.Namespace) -> bool:
    return arguments.remote is None


def run(arguments: argparse.Namespace, extension: ControlConnection) -> int:
    if arguments.remote is not None:
        timeout = arguments.timeout or REMOTE_TIMEOUT
        list_remote(*arguments.remote, timeout=timeout, as_json=arguments.json)
    else:
        list_local(extension, paint_for(arguments.color), timeout=arguments.timeout, as_json=arguments.json)
    return 0


def list_local(extension: ControlConnection, paint: Paint, *, timeout: float | None, as_json: bool) -> None:
    result = extension.request(Command.LIST, Nothing(), ListResult, timeout=timeout)
    if as_json:
        emit(render(ListDocument(devices=result.devices, bindings=result.bindings, left_out=result.left_out)))
        return
    if not result.devices:
        say("No shareable USB device is plugged in.")
    emit(format_list(result, get_terminal_size().columns, paint))


def format_list(result: ListResult, width: int, paint: Paint = plain) -> str:
    """All of `usbipd list`: what is plugged in, what is bound and is not, and what cannot be shared."""
    parts = []
    if result.devices:
        restrictions = format_restrictions(result, width)
        parts.append(
            format_local(result.devices, width, paint) + format_failures(result.devices, width) + restrictions
        )
    if absent := [binding for binding in result.bindings if not binding.devices]:
        replacements = format_replacements(result, absent, width)
        parts.append(f"Bound, not plugged in:\n{format_absent(absent, width)}{replacements}")
    if result.left_out:
        parts.append(f"Plugged in, cannot be shared:\n{format_left_out(result.left_out, width)}")
    return "\n".join(parts)


def format_local(devices: list[DeviceInfo], width: int, paint: Paint) -> str:
    """The table of `usbipd list`."""
    columns = (
        Column("BUSID"),
        Column("VID:PID"),
        Column("STATE", state=True),
        Column("DEVICE", minimum=12),
        Column("USED BY", minimum=10),
    )
    rows = [
        (
            device.busid,
            hardware_id(device.vendor_id, device.product_id),
            device.state.value,
            device_name(device),
            device_user(device),
        )
        for device in devices
    ]
    return format_table(columns, rows, width, paint)


def format_left_out(devices: list[LeftOutInfo], width: int) -> str:
    """Why devices cannot be shared, and what to try."""
    text = ""
    for device in devices:
        text += wrap(device.reason, width, "  ", first=f"{device.busid}: ")
        if device.advice is not None:
            text += wrap(device.advice, width, "    ", first="  hint: ")
    return text


def format_restrictions(result: ListResult, width: int) -> str:
    """The devices that only some clients may use, by their bindings."""
    text = ""
    for device in result.devices:
        lists = [binding.allow for binding in result.bindings if device.busid in binding.devices]
        if lists and all(lists):
            networks = dict.fromkeys(network for allow in lists for network in allow)
            text += wrap(", ".join(networks), width, "  ", first=f"{device.busid}: only for ")
    return text


def format_absent(bindings: list[BindingInfo], width: int) -> str:
    """The table of bindings without a device."""
    columns = (
        Column("VID:PID"),
        Column("PORT"),
        Column("SERIAL NUMBER", minimum=13),
        Column("NAME", minimum=12),
        Column("ALLOWED", minimum=8),
    )
    rows = [
        (
            hardware_id(binding.vendor_id, binding.product_id),
            binding.busid or "any",
            binding.serial or "any",
            known_name(binding.vendor_id, binding.product_id, binding.product, with_maker=False) or "",
            ", ".join(binding.allow) or "all",
        )
        for binding in bindings
    ]
    return format_table(columns, rows, width)


def format_replacements(result: ListResult, absent: list[BindingInfo], width: int) -> str:
    """The devices in the port of another, bound device, and how they differ from it."""
    text = ""
    for binding in absent:
        if (found := result.instead_of(binding)) is not None:
            begin = f"{found.busid}: "
            now = describe(found.vendor_id, found.product_id, found.serial)
            bound = describe(binding.vendor_id, binding.product_id, binding.serial)
            text += wrap(f"bound: {bound}; plugged in: {now}", width, "  ", first=begin)
            unbind, bind = (f"`usbipd {command} {found.busid}`" for command in ("unbind", "bind"))
            text += wrap(f"hint: to share it instead, {unbind}, then {bind}", width, "    ", first="  ")
    return text


def describe(vendor_id: int, product_id: int, serial: str | None) -> str:
    """What identifies a device, in a sentence."""
    ids = hardware_id(vendor_id, product_id)
    return ids if serial is None else f"{ids} serial number {serial}"


def list_remote(host: str, port: int, *, timeout: float, as_json: bool) -> None:
    devices = [_remote_device(device) for device in fetch_devlist(host, port, timeout)]
    if as_json:
        emit(render(RemoteListDocument(host=host, port=port, devices=devices)))
    elif devices:
        emit(format_remote(devices, get_terminal_size().columns))
    else:
        say(f"{host} shares no device with this machine.")


def format_remote(devices: list[RemoteDevice], width: int) -> str:
    """The table of `usbipd list --remote`."""
    columns = (
        Column("BUSID"),
        Column("VID:PID"),
        Column("SPEED"),
        Column("DEVICE", minimum=8),
        Column("INTERFACES", minimum=10),
    )
    rows = [
        (
            device.busid,
            hardware_id(device.vendor_id, device.product_id),
            device.speed,
            known_name(device.vendor_id, device.product_id)
            or hardware_id(device.vendor_id, device.product_id),
            count_classes(interface.interface_class for interface in device.interfaces)
            or class_name(device.device_class),
        )
        for device in devices
    ]
    return format_table(columns, rows, width)


def _remote_device(device: UsbDevice) -> RemoteDevice:
    return RemoteDevice(
        busid=device.busid,
        path=device.path,
        vendor_id=device.idVendor,
        product_id=device.idProduct,
        device_version=device.bcdDevice,
        speed=_speed_label(device.speed),
        device_class=device.bDeviceClass,
        device_subclass=device.bDeviceSubClass,
        device_protocol=device.bDeviceProtocol,
        configuration=device.bConfigurationValue,
        configurations=device.bNumConfigurations,
        interfaces=[
            RemoteInterface(
                interface_class=interface.bInterfaceClass,
                interface_subclass=interface.bInterfaceSubClass,
                interface_protocol=interface.bInterfaceProtocol,
            )
            for interface in device.interfaces
        ],
    )


def _speed_label(speed: int) -> str:
    """The word for a speed on the wire; other servers send speeds that this one never does."""
    try:
        return Speed(speed).label
    except ValueError:
        return {4: "wireless", 6: "super plus"}.get(speed, "unknown")  # include/uapi/linux/usb/ch9.h


SUBCOMMAND = Subcommand(
    add_arguments=add_arguments,
    requires_extension=requires_extension,
    run=run,
    usage="[OPTIONS]",
    examples=(
        ("show the devices of this machine, their state and who uses them", "usbipd list"),
        ("show what another machine shares", "usbipd list -r 192.168.1.5"),
        (
            "print the busids of all shared devices, for a script",
            "usbipd list --json |\n      jq -r '.devices[] | select(.state == \"shared\").busid'",
        ),
    ),
)
