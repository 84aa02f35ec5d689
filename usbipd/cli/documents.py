"""The JSON documents that the commands print under `--json`.  Runs in the caller's process.

docs/json.md describes each field; a test keeps the two together.  `FORMAT` is raised when a field changes its
meaning or goes away; a new field does not raise it.
"""

from typing import Final

import msgspec

from usbipd.errors import UsbipdError
from usbipd.ipc.messages import DeviceReport, ErrorReport, StatusResult

FORMAT: Final = 1


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all documents."""

    format: int = FORMAT


class ListDocument(Document, frozen=True, kw_only=True):
    """`usbipd list --json`."""

    devices: list[DeviceReport]


class RemoteInterface(msgspec.Struct, frozen=True):
    """One interface of a device of another machine: its USB class triple."""

    interface_class: int
    interface_subclass: int
    interface_protocol: int


class RemoteDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device that another machine shares, as OP_REP_DEVLIST tells it."""

    busid: str
    path: str
    vendor_id: int
    product_id: int
    device_version: int
    speed: str
    device_class: int
    device_subclass: int
    device_protocol: int
    configuration: int
    configurations: int
    interfaces: list[RemoteInterface]


class RemoteListDocument(Document, frozen=True, kw_only=True):
    """`usbipd list --remote HOST --json`."""

    host: str
    port: int
    devices: list[RemoteDevice]


class BindDocument(Document, frozen=True, kw_only=True):
    """`usbipd bind --json`."""

    device: DeviceReport


class UnbindDocument(Document, frozen=True, kw_only=True):
    """`usbipd unbind --json`."""

    busids: list[str]


class StatusDocument(Document, frozen=True, kw_only=True):
    """`usbipd status --json` and `usbipd-ext --status --json`."""

    status: StatusResult


class ErrorDocument(Document, frozen=True, kw_only=True):
    """What any command prints instead of its document when it fails."""

    error: ErrorReport


def error_document(error: UsbipdError) -> ErrorDocument:
    """`error` as a document."""
    return ErrorDocument(error=ErrorReport(code=error.code, message=error.message, advice=error.advice))


def render(document: Document) -> str:
    """`document` as indented JSON, line ended."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
