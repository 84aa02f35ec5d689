"""Open questions about macOS, and what a report answers.  Runs in the caller's process.

docs/macos-acceptance.md explains how each question is answered.  A question without evidence stays open:
nothing is guessed.
"""

from collections.abc import Callable, Iterator
from typing import Final

from usbipd.cli.bug_report_document import DeviceFacts, HostFacts, LaunchdJob, OpenQuestion, Trial
from usbipd.cli.device import hardware_id
from usbipd.cli.usb_class import class_name, count_classes
from usbipd.ipc.control_messages import CheckResult, DeviceState, HistoryEntry, HistoryEvent

MASS_STORAGE: Final = 8  # https://www.usb.org/defined-class-codes


class Evidence:
    """The source of the answers."""

    def __init__(
        self,
        host: HostFacts,
        launchd: LaunchdJob | None,
        trials: list[Trial],
        devices: list[DeviceFacts],
        checks: list[CheckResult],
        history: list[HistoryEntry],
    ) -> None:
        self.host = host
        self.launchd = launchd
        self.trials = trials
        self.devices = devices
        self.checks = checks
        self.history = history

    def held(self) -> Iterator[DeviceFacts]:
        """Devices that a worker holds or should hold, in the trials and now; simulated ones prove nothing."""
        for facts in [trial.during for trial in self.trials if trial.during is not None] + self.devices:
            if not facts.device.simulated and facts.device.state is not DeviceState.NOT_SHARED:
                yield facts


def _captured(evidence: Evidence) -> Iterator[str]:
    for facts in evidence.held():
        device = facts.device
        if device.claim_method is not None:
            drivers = ", ".join(device.drivers) or "none"
            yield f"{_name(facts)}: claimed ({device.claim_method}); drivers while it is held: {drivers}"


def _refused(evidence: Evidence) -> Iterator[str]:
    for trial in evidence.trials:
        if trial.bind_error is not None:
            yield f"{_name(trial.before)}: {trial.bind_error.code}: {trial.bind_error.message}"
    for facts in evidence.held():
        if facts.device.error is not None:
            yield f"{_name(facts)}: {facts.device.error}"
    for entry in evidence.history:
        if entry.event is HistoryEvent.FAILED:
            yield f"{entry.busid} ({entry.product or 'unnamed device'}), before: {entry.reason}"


def _came_back(evidence: Evidence) -> Iterator[str]:
    for trial in evidence.trials:
        if trial.during is None:
            continue
        name = _name(trial.before)
        if trial.unbind_error is not None:
            yield f"{name}: {trial.unbind_error.code}: {trial.unbind_error.message}"
        elif trial.seconds_until_back is not None:
            drivers = ", ".join(trial.before.device.drivers) or "it had none"
            yield f"{name}: back after {trial.seconds_until_back:.1f} s with its drivers: {drivers}"
        elif trial.after is None:
            yield f"{name}: no longer present"
        else:
            now = ", ".join(trial.after.device.drivers) or "none"
            yield f"{name}: drivers before: {', '.join(trial.before.device.drivers)}; now: {now}"


def _identity(evidence: Evidence) -> Iterator[str]:
    for trial in evidence.trials:
        moments = [("before", trial.before), ("during", trial.during), ("after", trial.after)]
        ids = [(when, _registry_id(facts)) for when, facts in moments if facts is not None]
        if any(number is not None for _when, number in ids):
            shown = ", ".join(f"{when} {number:#x}" for when, number in ids if number is not None)
            yield f"{_name(trial.before)}: {shown}"


def _storage(evidence: Evidence) -> Iterator[str]:
    for trial in evidence.trials:
        facts = trial.before
        if MASS_STORAGE in facts.interface_classes or facts.in_use:
            used = ", ".join(facts.in_use) or "nothing"
            error = trial.bind_error
            result = "claimed" if error is None else f"refused, {error.code}: {error.message}"
            yield f"{_name(facts)}: in use before: {used}; {result}"


def _aborts(evidence: Evidence) -> Iterator[str]:
    for facts in evidence.held():
        counters = facts.device.counters
        if counters is not None and counters.unlinks:
            yield (
                f"{_name(facts)}: {counters.unlinks} UNLINKs, {counters.errors} URBs ended with an error, "
                f"of {counters.urbs}"
            )


def _sessions(evidence: Evidence) -> Iterator[str]:
    for entry in evidence.history:
        if entry.event is HistoryEvent.DETACHED:
            yield (
                f"{entry.busid} ({entry.product or 'unnamed device'}): {entry.bytes_in or 0} bytes in, "
                f"{entry.bytes_out or 0} out, {entry.seconds or 0:.0f} s, {entry.reason}"
            )


def _launchd(evidence: Evidence) -> Iterator[str]:
    job = evidence.launchd
    if job is not None:
        installed = "is" if job.is_installed else "is not"
        yield f"{job.file} {installed} installed; launchctl print: exit code {job.exit_code}"


def _versions(evidence: Evidence) -> Iterator[str]:
    host = evidence.host
    model = host.model or "model unknown"
    yield f"{host.system} {host.system_version}, {host.machine}, {model}, libusb {host.libusb}"


def _checks(*names: str) -> Callable[[Evidence], Iterator[str]]:
    def answer(evidence: Evidence) -> Iterator[str]:
        for check in evidence.checks:
            if check.name in names:
                yield f"{check.name}: {check.state.value}: {check.message}"

    return answer


QUESTIONS: Final[tuple[tuple[str, str, Callable[[Evidence], Iterator[str]]], ...]] = (
    ("versions", "Which macOS, Mac and libusb is this?", _versions),
    ("capture", "Which devices are captured from their drivers, class by class?", _captured),
    ("refused", "Which are not, and with which code?", _refused),
    ("back", "Does a device come back to its drivers, and how soon?", _came_back),
    ("identity", "Does a device keep its registry id while it is captured, and after?", _identity),
    ("storage", "Is a disk captured once its volumes are unmounted?", _storage),
    ("sessions", "Do clients use captured devices, and how do sessions end?", _sessions),
    ("unlink", "Do other URBs live on when one of their endpoint is unlinked?", _aborts),
    ("launchd", "Does launchd have the job?", _launchd),
    ("sleep", "Are sleep and wake noticed, and devices that come and go?", _checks("power", "hotplug")),
    ("macos", "Does what is known of this macOS show?", _checks("macos", "libusb")),
)
"""Name, question, and the function that answers it."""


def answer_questions(evidence: Evidence) -> list[OpenQuestion]:
    """Each question with its evidence; none if the report has none."""
    return [
        OpenQuestion(name=name, question=question, evidence=list(dict.fromkeys(answer(evidence))))
        for name, question, answer in QUESTIONS
    ]


def _name(facts: DeviceFacts) -> str:
    """The device with its classes, by which the answers are compared."""
    device = facts.device
    classes = count_classes(facts.interface_classes) or class_name(device.device_class)
    words = f"{device.busid} {hardware_id(device.vendor_id, device.product_id)}"
    return f"{words} {device.product or 'unnamed device'} [{classes}; {device.speed}]"


def _registry_id(facts: DeviceFacts) -> int | None:
    return facts.registry[0].registry_id if facts.registry else None
