"""The document of `usbipd doctor --report`; see docs/json.md.  Runs in the caller's process."""

import msgspec

from usbipd.cli.documents import Document
from usbipd.ipc.control_messages import CheckResult, DeviceInfo, HistoryEntry, StatusResult
from usbipd.ipc.messages import ErrorInfo


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and its software."""

    system: str
    system_version: str
    system_build: str | None
    machine: str
    model: str | None
    usbipd: str
    python: str
    libusb: str | None
    is_root: bool


class LaunchdJob(msgspec.Struct, frozen=True, kw_only=True):
    """The launchd job of the extension."""

    file: str
    is_installed: bool
    exit_code: int | None


class RegistryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the IORegistry, the device or something below it."""

    depth: int
    class_name: str
    name: str
    registry_id: int
    interface: int | None
    owner: str | None
    creator: str | None
    bsd_name: str | None


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One device at one moment."""

    time: float
    device: DeviceInfo
    interface_classes: list[int]
    holders: list[str]
    in_use: list[str]
    registry: list[RegistryEntry] | None
    problem: str | None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was bound, examined and unbound."""

    busid: str
    before: DeviceFacts
    bind_error: ErrorInfo | None
    bind_seconds: float
    during: DeviceFacts | None
    unbind_error: ErrorInfo | None
    after: DeviceFacts | None
    seconds_until_back: float | None


class OpenQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """An assumption that is not proven, and what this report says about it."""

    name: str
    question: str
    evidence: list[str]


class ReportDocument(Document, frozen=True, kw_only=True):
    """`usbipd doctor --report`."""

    contains: list[str]
    time: float
    host: HostFacts
    launchd: LaunchdJob | None
    assumptions: list[OpenQuestion]
    trials: list[Trial]
    devices: list[DeviceFacts]
    checks: list[CheckResult]
    status: StatusResult | None
    history: list[HistoryEntry]
