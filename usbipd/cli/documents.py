"""The JSON documents that the commands print under `--json`.  Runs in the caller's process.

docs/json.md describes each field, docs/schema/ has a schema of each document; tests compare both with
the code.  `FORMAT` is raised when a field changes its meaning or is removed, not when one is added.
"""

from typing import Final

import msgspec

from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import (
    BindingInfo,
    CheckResult,
    DeviceInfo,
    HistoryEntry,
    LeftOutInfo,
    StatusResult,
)
from usbipd.ipc.messages import ErrorInfo

FORMAT: Final = 1


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all documents."""

    format: int = FORMAT


class ListDocument(Document, frozen=True, kw_only=True):
    """`usbipd list --json`."""

    devices: list[DeviceInfo]
    bindings: list[BindingInfo]
    left_out: list[LeftOutInfo]


class RemoteInterface(msgspec.Struct, frozen=True):
    """One interface of a device of another machine: its USB class triple."""

    interface_class: int
    interface_subclass: int
    interface_protocol: int


class RemoteDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device that another machine shares, as in OP_REP_DEVLIST."""

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

    binding: BindingInfo
    devices: list[DeviceInfo]


class UnbindDocument(Document, frozen=True, kw_only=True):
    """`usbipd unbind --json`."""

    bindings: list[BindingInfo]
    busids: list[str]
    still_shared: list[str]


class DetachDocument(Document, frozen=True, kw_only=True):
    """`usbipd detach --json`."""

    busid: str
    client: str


class ReleaseDocument(Document, frozen=True, kw_only=True):
    """`usbipd release --json`."""

    busid: str
    drivers: list[str]


class StatusDocument(Document, frozen=True, kw_only=True):
    """`usbipd status --json` and `usbipd-ext --status --json`; each line under `--watch`."""

    status: StatusResult


class HistoryDocument(Document, frozen=True, kw_only=True):
    """`usbipd history --json`."""

    entries: list[HistoryEntry]


class HistoryEntryDocument(Document, frozen=True, kw_only=True):
    """Each line of `usbipd history --follow --json`."""

    entry: HistoryEntry


class HealthDocument(Document, frozen=True, kw_only=True):
    """`usbipd doctor --json` and `usbipd-ext --health --json`."""

    checks: list[CheckResult]


class ErrorDocument(Document, frozen=True, kw_only=True):
    """The document of any command that fails, instead of its own."""

    error: ErrorInfo


def error_document(error: UsbipdError) -> ErrorDocument:
    """`error` as a document."""
    return ErrorDocument(error=ErrorInfo(code=error.code, message=error.message, advice=error.advice))


def render(document: Document) -> str:
    """`document` as indented JSON, with a line end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def render_line(document: Document) -> str:
    """`document` as JSON on one line, with a line end."""
    return msgspec.json.encode(document).decode() + "\n"
