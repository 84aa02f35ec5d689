"""`usbipd doctor --report`: a file that shows a maintainer how a host and its devices behave.

Runs in the caller's process.  The extension is asked for what it knows; mounts, holders and, on macOS, the
IORegistry are read here, which needs no rights.  Only the devices of `--try-claim` are touched: each is
bound, examined and unbound.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from usbipd.cli.bind import CLAIM_TIMEOUT
from usbipd.cli.bug_report_document import (
    DeviceFacts,
    RegistryEntry,
    ReportDocument,
    Trial,
)
from usbipd.cli.connection import ControlConnection
from usbipd.cli.documents import render
from usbipd.cli.host_facts import host_facts, launchd_job
from usbipd.cli.macos_acceptance import Evidence, answer_questions
from usbipd.cli.offline_checks import examine
from usbipd.errors import ExtensionUnreachableError, UsbipdError
from usbipd.ipc.control_messages import (
    HISTORY_PAGE,
    BindParameters,
    BindResult,
    CheckResult,
    DeviceInfo,
    DeviceState,
    HistoryEntry,
    HistoryParameters,
    HistoryResult,
    ListResult,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.ipc.messages import Command, ErrorInfo, Nothing
from usbipd.text import readable
from usbipd.usb.host import host_ownership
from usbipd.usb.hotplug import SYSFS_DEVICES
from usbipd.usb.ownership import Ownership

if TYPE_CHECKING:
    from usbipd._iokit import Entry

REATTACH_TIMEOUT: Final = 10.0
"""Seconds within which a released device should have its drivers again."""
POLL_INTERVAL: Final = 0.2
"""Seconds between two checks for them."""
SHORTEST_SERIAL: Final = 6
"""Characters: a shorter serial number would match parts of numbers and words."""
LOOPBACK_ONLY: Final = "127.0.0.1"
"""The only client that may attach a tried device: no client of the network interferes."""
REDACTED: Final = "<serial number>"

CONTAINS: Final = [
    "model, system and versions of this machine",
    "every USB device: names, ids, drivers, the programs that have it open, mount points of its disks",
    "the output of usbipd's doctor, status and history: times, addresses of clients, amounts of data, errors",
    "no contents of any transfer",
]
"""What a report reveals about its host; part of the report."""


class BugReporter:
    """Collects a report."""

    def __init__(
        self,
        extension: ControlConnection,
        *,
        ownership: Ownership | None = None,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`extension` is not open yet."""
        self._extension = extension
        self._ownership = ownership or host_ownership()
        self._wait = wait
        self._clock = clock

    def collect(self, try_claims: Sequence[str]) -> ReportDocument:
        """The report, after these devices were tried one by one.

        Raises `UsbipdError` if one of them does not exist or is already shared, or if there are any and no
        extension answers.
        """
        checks = examine(self._extension)
        trials: list[Trial] = []
        status: StatusResult | None = None
        history: list[HistoryEntry] = []
        if try_claims and not self._extension.is_open:
            self._extension.open()
        if self._extension.is_open:  # else a check has the reason
            trials = self._try_all(try_claims)
            with contextlib.suppress(UsbipdError):  # as above
                status = self._extension.request(Command.STATUS, Nothing(), StatusResult)
                page = HistoryParameters(limit=HISTORY_PAGE)
                history = self._extension.request(Command.HISTORY, page, HistoryResult).entries
        devices = [] if status is None else [self._look(device) for device in status.devices]
        return self._compose(checks, trials, devices, status, history)

    def _compose(
        self,
        checks: list[CheckResult],
        trials: list[Trial],
        devices: list[DeviceFacts],
        status: StatusResult | None,
        history: list[HistoryEntry],
    ) -> ReportDocument:
        host, launchd = host_facts(), launchd_job()
        return ReportDocument(
            contains=CONTAINS,
            time=time.time(),
            host=host,
            launchd=launchd,
            assumptions=answer_questions(Evidence(host, launchd, trials, devices, checks, history)),
            trials=trials,
            devices=devices,
            checks=checks,
            status=status,
            history=history,
        )

    # ---- trials --------------------------------------------------------------------------------------------

    def _try_all(self, busids: Sequence[str]) -> list[Trial]:
        listed = self._extension.request(Command.LIST, Nothing(), ListResult)
        devices = {device.busid: device for device in listed.devices}
        bound = {busid for binding in listed.bindings for busid in binding.devices}
        for busid in busids:
            device = devices.get(busid)
            if device is None:
                raise UsbipdError(
                    f"device {busid!r} does not exist",
                    code="no-device",
                    advice="`usbipd list` shows all devices",
                )
            if device.state is not DeviceState.NOT_SHARED or busid in bound:
                state = "bound" if device.state is DeviceState.NOT_SHARED else device.state.value
                raise UsbipdError(
                    f"{busid} is already {state}: the report shows it in that state",
                    code="shared",
                    advice=f"to try a claim and a release, run `usbipd unbind {busid}` first",
                )
        return [self._try(busid) for busid in busids]

    def _try(self, busid: str) -> Trial:
        """Bind, examine, unbind, and wait for the drivers.  Reports failures; always releases the device."""
        found = self._find(busid)
        if found is None:
            raise UsbipdError(f"{busid} was unplugged", code="no-device")
        before, during, unbind_error = self._look(found), None, None
        begin = self._clock()
        bind_error = self._ask(Command.BIND, BindParameters(busid=busid, allow=[LOOPBACK_ONLY]), BindResult)
        seconds = self._clock() - begin
        if bind_error is None:
            try:
                held = self._find(busid)
                during = None if held is None else self._look(held)
            finally:
                unbind_error = self._ask(Command.UNBIND, UnbindParameters(busid=busid), UnbindResult)
        back = self._seconds_until_back(before.device)
        now = self._find(busid)
        return Trial(
            busid=busid,
            before=before,
            bind_error=bind_error,
            bind_seconds=seconds,
            during=during,
            unbind_error=unbind_error,
            after=None if now is None else self._look(now),
            seconds_until_back=back,
        )

    def _ask(self, command: Command, parameters: Any, result: type[Any]) -> ErrorInfo | None:
        try:
            self._extension.request(command, parameters, result, timeout=CLAIM_TIMEOUT)
        except ExtensionUnreachableError:
            raise
        except UsbipdError as error:
            return ErrorInfo(code=error.code, message=error.message, advice=error.advice)
        return None

    def _seconds_until_back(self, before: DeviceInfo) -> float | None:
        """Seconds until the device has all its drivers again; None: more than `REATTACH_TIMEOUT`."""
        begin = self._clock()
        while True:
            now = self._find(before.busid)
            passed = self._clock() - begin
            if now is not None and set(before.drivers) <= set(now.drivers):
                return passed
            if passed >= REATTACH_TIMEOUT:
                return None
            self._wait(POLL_INTERVAL)

    def _find(self, busid: str) -> DeviceInfo | None:
        devices = self._extension.request(Command.LIST, Nothing(), ListResult).devices
        return next((device for device in devices if device.busid == busid), None)

    # ---- one device ----------------------------------------------------------------------------------------

    def _look(self, device: DeviceInfo) -> DeviceFacts:
        holders: list[str] = []
        in_use: list[str] = []
        registry, problem = None, None
        if not device.simulated:
            try:
                holders = [str(holder) for holder in self._ownership.holders_of(device.busid)]
                in_use = self._ownership.in_use(device.busid)
                registry = registry_below(device.busid)
            except (OSError, UsbipdError) as error:
                problem = str(error)
        return DeviceFacts(
            time=time.time(),
            device=device,
            interface_classes=[] if device.simulated else interface_classes(device.busid),
            holders=holders,
            in_use=in_use,
            registry=registry,
            problem=problem,
        )


def registry_below(busid: str) -> list[RegistryEntry] | None:
    """The IORegistry entries of a device; None without an IORegistry.  Raises `UsbipdError`."""
    if sys.platform != "darwin":
        return None
    from usbipd.usb import ioregistry  # its compiled part exists on macOS only

    return [_entry(entry) for entry in ioregistry.registry_of(busid)]


def _entry(entry: "Entry") -> RegistryEntry:
    properties = entry.properties
    number = properties.get("bInterfaceNumber")
    return RegistryEntry(
        depth=entry.depth,
        class_name=entry.class_name,
        name=readable(entry.name),
        registry_id=entry.registry_id,
        interface=number if isinstance(number, int) else None,
        owner=_text(properties.get("UsbExclusiveOwner")),
        creator=_text(properties.get("IOUserClientCreator")),
        bsd_name=_text(properties.get("BSD Name")),
    )


def _text(value: object) -> str | None:
    return readable(value) if isinstance(value, str) else None


def interface_classes(busid: str) -> list[int]:
    """bInterfaceClass of each interface of the active configuration; empty if the host reports none."""
    with contextlib.suppress(OSError, ValueError, UsbipdError):
        if sys.platform == "darwin":
            from usbipd.usb import ioregistry

            return ioregistry.interface_classes(busid)
        files = sorted(SYSFS_DEVICES.glob(f"{busid}:*/bInterfaceClass"))
        return [int(file.read_text(), 16) for file in files]
    return []


# ---- the file ----------------------------------------------------------------------------------------------


def redact_serials(document: ReportDocument) -> ReportDocument:
    """The report with every serial number of a device replaced."""
    devices = [facts.device for facts in document.devices]
    devices += [trial.before.device for trial in document.trials]
    bindings = [] if document.status is None else document.status.bindings
    serials = {device.serial for device in devices} | {binding.serial for binding in bindings}
    known = sorted((serial for serial in serials if serial), key=len, reverse=True)

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: REDACTED if key == "serial" and each is not None else hide(each)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [hide(each) for each in value]
        if isinstance(value, str):
            for serial in known:
                if len(serial) >= SHORTEST_SERIAL:
                    value = value.replace(serial, REDACTED)
        return value

    return msgspec.convert(hide(msgspec.to_builtins(document)), ReportDocument)


def write(document: ReportDocument, path: Path) -> None:
    """Raises `UsbipdError` if the file already exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render(document))
    except FileExistsError as error:
        raise UsbipdError(f"{path} already exists", code="output", advice="name another file") from error
    except OSError as error:
        raise UsbipdError(f"{path}: {error.strerror}", code="output", advice="name another file") from error


def usual_name() -> Path:
    """The name of a new report, in the working directory."""
    return Path(time.strftime("usbipd-report-%Y%m%d-%H%M%S.json"))
