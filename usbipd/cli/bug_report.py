"""`usbipd doctor --report`: one file from which a maintainer learns how a host and its devices behave.

Runs in the caller's process.  What the extension knows is asked of it; mounts, holders and, on macOS, the
IORegistry are looked at from here, which needs no rights.  Only a device that is named to be tried is
touched: it is bound, looked at, and unbound.
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
"""Seconds in which a device that was given back should have its drivers again."""
POLL_INTERVAL: Final = 0.2
"""Seconds between two looks at that."""
SHORTEST_SERIAL: Final = 6
"""Characters: a shorter serial number would be found in every number and word."""
LOOPBACK_ONLY: Final = "127.0.0.1"
"""Who may attach a device that is tried: no client of the network comes between."""
REDACTED: Final = "<serial number>"

CONTAINS: Final = [
    "model, system and versions of this machine",
    "every USB device: names, ids, drivers, the programs that have it open, mount points of its disks",
    "what usbipd's doctor, status and history say: times, addresses of clients, amounts of data, errors",
    "no contents of any transfer",
]
"""What a report tells of its host, said in it."""


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
        """The report, after these devices were tried, one after the other.

        Raises `UsbipdError` if one of them is not there, or is shared already; and if there are any to try
        and no extension answers.
        """
        checks = examine(self._extension)
        trials: list[Trial] = []
        status: StatusResult | None = None
        history: list[HistoryEntry] = []
        if try_claims and not self._extension.is_open:
            self._extension.open()
        if self._extension.is_open:  # else a check says why not
            trials = self._try_all(try_claims)
            with contextlib.suppress(UsbipdError):  # likewise
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
                    f"there is no device {busid!r}",
                    code="no-device",
                    advice="`usbipd list` shows what there is",
                )
            if device.state is not DeviceState.NOT_SHARED or busid in bound:
                state = "bound" if device.state is DeviceState.NOT_SHARED else device.state.value
                raise UsbipdError(
                    f"{busid} is {state} already: it is in the report as it is",
                    code="shared",
                    advice=f"to see it taken and given back, `usbipd unbind {busid}` first",
                )
        return [self._try(busid) for busid in busids]

    def _try(self, busid: str) -> Trial:
        """Bind, look, unbind, and wait for the drivers.  What fails is told, and the device given back."""
        found = self._find(busid)
        if found is None:
            raise UsbipdError(f"{busid} has gone meanwhile", code="no-device")
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
        """Until the device has the drivers that it had; None if it has not in `REATTACH_TIMEOUT`."""
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
    """What the IORegistry has of a device; None where there is none.  Raises `UsbipdError`."""
    if sys.platform != "darwin":
        return None
    from usbipd.usb import ioregistry  # its compiled part is there on macOS only

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
    """bInterfaceClass of each interface of the active configuration; none if the host reports none."""
    with contextlib.suppress(OSError, ValueError, UsbipdError):
        if sys.platform == "darwin":
            from usbipd.usb import ioregistry

            return ioregistry.interface_classes(busid)
        files = sorted(SYSFS_DEVICES.glob(f"{busid}:*/bInterfaceClass"))
        return [int(file.read_text(), 16) for file in files]
    return []


# ---- the file ----------------------------------------------------------------------------------------------


def redact_serials(document: ReportDocument) -> ReportDocument:
    """The report without the serial numbers of devices, wherever it has them."""
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
    """Raises `UsbipdError` if the file is there already, or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render(document))
    except FileExistsError as error:
        raise UsbipdError(f"{path} is there already", code="output", advice="name another file") from error
    except OSError as error:
        raise UsbipdError(f"{path}: {error.strerror}", code="output", advice="name another file") from error


def usual_name() -> Path:
    """Of a report that is made now, in the working directory."""
    return Path(time.strftime("usbipd-report-%Y%m%d-%H%M%S.json"))
