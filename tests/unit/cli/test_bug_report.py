"""The report: what it asks, tries and hides."""

import json
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_binding, make_counters, make_device, make_entry, make_status
from usbipd.cli import bind, bug_report, host_facts, main
from usbipd.cli.bug_report import REDACTED, BugReporter, redact_serials, write
from usbipd.cli.bug_report_document import ReportDocument
from usbipd.cli.connection import ControlConnection
from usbipd.cli.macos_acceptance import QUESTIONS
from usbipd.errors import ClaimError, ExtensionUnreachableError, UsbipdError
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.control_messages import (
    PEOPLE,
    BindingInfo,
    BindParameters,
    BindResult,
    CheckResult,
    CheckState,
    DeviceInfo,
    DeviceState,
    HealthResult,
    HistoryEvent,
    HistoryResult,
    ListResult,
    UnbindResult,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command
from usbipd.usb.ownership import Holder

BUSID = "3-1"


class FakeOwnership:
    """A host that has the disk mounted and a driver at it."""

    def holders_of(self, busid: str) -> list[Holder]:
        return [Holder("driver", "AppleUSBMassStorage", None, 0)]

    def drivers_of(self, busid: str) -> list[str]:
        return []

    def in_use(self, busid: str) -> list[str]:
        return ["/Volumes/4C530001"]

    def unmount(self, busid: str) -> None:
        raise AssertionError("a report unmounts nothing")

    def give_back(self, busid: str) -> None:
        raise AssertionError("the extension does that")


class FakeExtension:
    """One device, which can be bound, and gets its drivers back when it was looked at `looks` times."""

    def __init__(self, *, looks: int = 2, bind_error: UsbipdError | None = None, **changes: object) -> None:
        self.device = make_device(BUSID, state=DeviceState.NOT_SHARED, **changes)
        self.looks = looks
        self.bind_error = bind_error
        self.asked: list[Command] = []
        self.bound = self.unbound = False
        self.bindings: list[BindingInfo] = []

    def answer(self, request: Request) -> Message | UsbipdError:
        self.asked.append(request.command)
        match request.command:
            case Command.HEALTH:
                return HealthResult(checks=[CheckResult(name="power", state=CheckState.OK, message="told")])
            case Command.LIST:
                return ListResult(devices=[self.seen()], bindings=self.bindings)
            case Command.BIND:
                assert isinstance(request.parameters, BindParameters)
                assert request.parameters.allow == ["127.0.0.1"]
                if self.bind_error is None:
                    self.bound = True
                return self.bind_error or BindResult(binding=make_binding(), devices=[])
            case Command.UNBIND:
                self.bound, self.unbound = False, True
                return UnbindResult(bindings=[], busids=[BUSID])
            case Command.STATUS:
                return make_status([self.seen()], bindings=[make_binding(serial="4C530001")])
            case Command.HISTORY:
                failed = make_entry(1, HistoryEvent.FAILED, reason="4C530001 refused: LIBUSB_ERROR_ACCESS")
                detached = make_entry(
                    2, HistoryEvent.DETACHED, reason="ended", seconds=4.0, bytes_in=9, bytes_out=8
                )
                return HistoryResult(entries=[detached, failed])
        raise AssertionError(request.command)

    def seen(self) -> DeviceInfo:
        if self.bound:
            return make_device(
                BUSID,
                state=DeviceState.SHARED,
                drivers=[],
                claim_method="libusb, captured",
                counters=make_counters(),
            )
        if self.unbound:
            self.looks -= 1
            if self.looks > 0:
                return make_device(BUSID, state=DeviceState.NOT_SHARED, drivers=[])
        return self.device


Start = Callable[..., object]
INTERFACE_CLASSES = bug_report.interface_classes  # the tests replace it


@pytest.fixture(autouse=True)
def no_usb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bug_report, "interface_classes", lambda _busid: [8])
    monkeypatch.setattr(bug_report, "registry_below", lambda _busid: None)


def collect(fake: FakeExtension, path: Path, start: Start, *try_claims: str) -> ReportDocument:
    """A report of a moment that lasts 0.5 s each time that it waits."""
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += 0.5

    with start(fake.answer), ControlConnection(str(path)) as connection:  # type: ignore[attr-defined]
        reporter = BugReporter(connection, ownership=FakeOwnership(), wait=wait, clock=lambda: now[0])
        return reporter.collect(try_claims)


def evidence(document: ReportDocument, name: str) -> list[str]:
    return next(each.evidence for each in document.assumptions if each.name == name)


DISK = "3-1 0781:5581 Ultra [mass storage; high]"


def test_the_check_list_names_every_question() -> None:
    manual = (Path(__file__).parents[3] / "docs/macos-acceptance.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", manual, re.MULTILINE)
    assert named == [name for name, _question, _answer in QUESTIONS]


def test_without_trials_nothing_is_touched(extension: Start, socket_path: Path) -> None:
    fake = FakeExtension()
    document = collect(fake, socket_path, extension)
    assert {Command.BIND, Command.UNBIND}.isdisjoint(fake.asked)
    [facts] = document.devices
    assert (facts.holders, facts.in_use) == (["the driver AppleUSBMassStorage"], ["/Volumes/4C530001"])
    assert [each.name for each in document.assumptions] == [name for name, _question, _answer in QUESTIONS]
    assert (document.trials, evidence(document, "capture"), evidence(document, "back")) == ([], [], [])
    assert evidence(document, "sleep") == ["power: ok: told"]
    assert evidence(document, "refused") == ["3-1 (Ultra), before: 4C530001 refused: LIBUSB_ERROR_ACCESS"]
    assert evidence(document, "sessions") == ["3-1 (Ultra): 9 bytes in, 8 out, 4 s, ended"]


def test_a_device_that_is_taken_and_comes_back(extension: Start, socket_path: Path) -> None:
    fake = FakeExtension(looks=4)
    document = collect(fake, socket_path, extension, BUSID)
    [trial] = document.trials
    assert trial.during is not None
    assert trial.during.device.claim_method == "libusb, captured"
    assert (trial.bind_error, trial.unbind_error, trial.seconds_until_back) == (None, None, 1.5)
    assert evidence(document, "capture") == [
        f"{DISK}: claimed (libusb, captured); drivers while it is held: none"
    ]
    assert evidence(document, "back") == [f"{DISK}: back after 1.5 s with its drivers: usb-storage"]
    assert evidence(document, "storage") == [f"{DISK}: in use before: /Volumes/4C530001; claimed"]
    assert evidence(document, "unlink") == [f"{DISK}: 1 UNLINKs, 3 URBs ended with an error, of 7000"]
    assert fake.asked.index(Command.BIND) < fake.asked.index(Command.UNBIND)


def test_a_device_that_does_not_come_back(extension: Start, socket_path: Path) -> None:
    document = collect(FakeExtension(looks=1000), socket_path, extension, BUSID)
    assert document.trials[0].seconds_until_back is None
    assert evidence(document, "back") == [f"{DISK}: drivers before: usb-storage; now: none"]


def test_a_disk_that_nothing_uses(
    extension: Start, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeOwnership, "in_use", lambda _self, _busid: [])
    document = collect(FakeExtension(), socket_path, extension, BUSID)
    assert evidence(document, "storage") == [f"{DISK}: in use before: nothing; claimed"]


def test_something_else_that_is_used(
    extension: Start, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a card reader, which may say of itself that it is of no class."""
    monkeypatch.setattr(bug_report, "interface_classes", lambda _busid: [0xFF])
    document = collect(FakeExtension(), socket_path, extension, BUSID)
    [answer] = evidence(document, "storage")
    assert answer.endswith("[vendor; high]: in use before: /Volumes/4C530001; claimed")


def test_a_trial_waits_as_long_as_a_claim_may_take(
    extension: Start, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the report would end here, with the device bound."""
    assert bug_report.CLAIM_TIMEOUT == bind.CLAIM_TIMEOUT
    monkeypatch.setattr(bug_report, "CLAIM_TIMEOUT", 0.1)
    fake = FakeExtension()

    def talk(peer: socket.socket) -> None:
        channel = BlockingChannel(peer, "scripted extension", PEOPLE)
        while isinstance(request := channel.receive(10), Request) and request.command is not Command.BIND:
            channel.respond(request, fake.answer(request))
        drain(peer)

    with (
        extension(talk=talk),  # type: ignore[attr-defined]
        ControlConnection(str(socket_path), timeout=5) as connection,
        pytest.raises(ExtensionUnreachableError, match=r"did not answer within 0\.1 s"),
    ):
        BugReporter(connection, ownership=FakeOwnership()).collect([BUSID])


def test_a_device_that_is_refused(extension: Start, socket_path: Path) -> None:
    bind_error = ClaimError("3-1 may not be captured: (LIBUSB_ERROR_ACCESS, -3)", code="LIBUSB_ERROR_ACCESS")
    fake = FakeExtension(bind_error=bind_error)
    document = collect(fake, socket_path, extension, BUSID)
    [trial] = document.trials
    assert trial.bind_error is not None
    assert (trial.bind_error.code, trial.during) == ("LIBUSB_ERROR_ACCESS", None)
    assert evidence(document, "refused")[0] == f"{DISK}: LIBUSB_ERROR_ACCESS: {bind_error.message}"
    assert Command.UNBIND not in fake.asked


@pytest.mark.parametrize(
    ("busid", "state", "code"),
    [("9-9", DeviceState.NOT_SHARED, "no-device"), (BUSID, DeviceState.SHARED, "shared")],
)
def test_what_cannot_be_tried(
    extension: Start, socket_path: Path, busid: str, state: DeviceState, code: str
) -> None:
    fake = FakeExtension()
    fake.device = make_device(BUSID, state=state)
    with pytest.raises(UsbipdError) as caught:
        collect(fake, socket_path, extension, busid)
    assert caught.value.code == code
    assert Command.BIND not in fake.asked


def test_what_is_bound_and_about_to_be_taken_cannot_be_tried(extension: Start, socket_path: Path) -> None:
    """It is not shared yet; a trial would end with its binding removed."""
    fake = FakeExtension()
    fake.bindings = [make_binding(busid=BUSID, devices=[BUSID])]
    with pytest.raises(UsbipdError, match=f"{BUSID} is already bound") as caught:
        collect(fake, socket_path, extension, BUSID)
    assert caught.value.code == "shared"
    assert Command.BIND not in fake.asked


def test_a_device_that_is_tried_is_given_back_whatever_happens(
    extension: Start, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeExtension()

    def interrupt(_busid: str) -> list[int]:
        if fake.bound:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(bug_report, "interface_classes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect(fake, socket_path, extension, BUSID)
    assert fake.unbound


def test_no_extension_is_a_finding_too(socket_path: Path) -> None:
    with ControlConnection(str(socket_path)) as connection:
        document = BugReporter(connection, ownership=FakeOwnership()).collect([])
    assert (document.status, document.devices, document.history) == (None, [], [])
    assert document.checks[0].state is CheckState.FAILED


def test_serial_numbers_are_nowhere(extension: Start, socket_path: Path) -> None:
    document = redact_serials(collect(FakeExtension(), socket_path, extension, BUSID))
    text = json.dumps(document, default=str) + repr(document)
    assert "4C530001" not in text
    assert document.devices[0].device.serial == REDACTED
    assert document.devices[0].in_use == [f"/Volumes/{REDACTED}"]


def test_a_serial_number_that_begins_with_another_one_is_hidden_whole(
    extension: Start, socket_path: Path
) -> None:
    fake = FakeExtension(serial="4C530001AB", product="Ultra 4C530001AB")  # a binding has 4C530001
    document = redact_serials(collect(fake, socket_path, extension))
    assert document.devices[0].device.product == f"Ultra {REDACTED}"


def test_a_short_serial_number_hides_no_words(extension: Start, socket_path: Path) -> None:
    document = redact_serials(collect(FakeExtension(serial="1"), socket_path, extension))
    assert document.devices[0].device.serial == REDACTED
    assert document.devices[0].device.busid == BUSID


# ---- the command -------------------------------------------------------------------------------


def test_the_file(
    extension: Start, socket_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    with extension(FakeExtension().answer):  # type: ignore[attr-defined]
        assert main.main(["doctor", "--report", str(path), "--socket", str(socket_path)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "serial numbers of devices: left out" in said.err
    assert f"Written to {path}. Review it before you send it." in said.err
    assert stat.S_ISREG(path.stat().st_mode)
    assert "4C530001" not in path.read_text()
    document = json.loads(path.read_text())
    assert document["format"] == 1
    assert document["host"]["libusb"]
    assert document["contains"] == bug_report.CONTAINS


def test_with_serial_numbers_on_standard_output(
    extension: Start, socket_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["doctor", "--report", "-", "--with-serials", "--socket", str(socket_path)]
    with extension(FakeExtension().answer):  # type: ignore[attr-defined]
        assert main.main(arguments) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["devices"][0]["device"]["serial"] == "4C530001"
    assert "serial numbers of devices: yes" in said.err


def test_a_file_that_is_there_stays(extension: Start, socket_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("mine")
    document = collect(FakeExtension(), socket_path, extension)
    with pytest.raises(UsbipdError, match="already exists"):
        write(document, path)
    with pytest.raises(UsbipdError, match="No such file"):
        write(document, tmp_path / "nowhere" / "report.json")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("option", [["--try-claim", "1-1"], ["--with-serials"]])
def test_options_of_the_report_alone(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", *option]) == 2
    assert f"{option[0]} requires --report" in capsys.readouterr().err


# ---- the devices -------------------------------------------------------------------------------


def test_each_interface_of_the_active_configuration_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bug_report, "SYSFS_DEVICES", tmp_path)
    for name, code in (("3-2:1.0", "03"), ("3-2.4:1.0", "0e"), ("3-2.4:1.1", "0e"), ("3-2.4:1.2", "01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bInterfaceClass").write_text(f"{code}\n")
    assert INTERFACE_CLASSES("3-2.4") == [0x0E, 0x0E, 1]
    assert INTERFACE_CLASSES("3-2") == [3]
    assert INTERFACE_CLASSES("3-9") == []


# ---- the host ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("exit_code", "found"), [(0, 0), (113, 113), (None, None)])
def test_the_launchd_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int | None, found: int | None
) -> None:
    job, launchctl = tmp_path / "org.usbipd.extension.plist", tmp_path / "launchctl"
    monkeypatch.setattr(host_facts.paths, "launch_daemon", lambda: job)
    if exit_code is not None:
        launchctl.write_text(
            f'#!/bin/sh\ntest "$*" = "print system/org.usbipd.extension" && exit {exit_code}\n'
        )
        launchctl.chmod(0o755)
    answer = host_facts.launchd_job(launchctl)
    assert answer is not None
    assert (answer.is_installed, answer.exit_code) == (False, found)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('test "$*" = "-n hw.model kern.osversion" && echo Mac14,2 && echo 23F79', ("Mac14,2", "23F79")),
        ("echo Mac14,2", (None, None)),
        ("echo Mac14,2; echo 23F79; exit 1", (None, None)),
    ],
    ids=["both", "half an answer", "an error"],
)
def test_the_model_of_a_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: tuple[str | None, str | None]
) -> None:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text(f"#!/bin/sh\n{script}\n")
    sysctl.chmod(0o755)
    monkeypatch.setattr(host_facts, "SYSCTL", sysctl)
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.5", ("", "", ""), "arm64"))
    facts = host_facts.host_facts()
    assert (facts.system, facts.system_version) == ("macOS", "14.5")
    assert (facts.model, facts.system_build) == found
