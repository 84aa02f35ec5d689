"""How checks run: concurrently, with a time limit, and none hides another."""

import asyncio
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.extension.healthy_daemon import (
    PATIENCE,
    FakeHotplug,
    FakeManager,
    FakeStore,
    binding,
    mac,
    make_context,
    shared_device,
)
from usbipd.errors import ClaimError, UsbipdError
from usbipd.extension.check_context import CheckContext
from usbipd.extension.device import Failure
from usbipd.extension.health import CHECKS, MOST_FINDINGS, Check, examine
from usbipd.findings import LONGEST_TEXT, Finding, failed, ok, warning
from usbipd.ipc.control_messages import CheckResult, CheckState, HealthResult
from usbipd.ipc.messages import MAX_MESSAGE, encode


def result(
    *checks: tuple[str, Check], context: CheckContext | None = None, seconds: float = PATIENCE
) -> HealthResult:
    return asyncio.run(examine(context or make_context(), checks, seconds=seconds))


def finds(*found: Finding) -> Check:
    """A check with these findings."""

    async def check(_context: CheckContext) -> Sequence[Finding]:
        return found

    return check


def breaks(error: Exception) -> Check:
    """A check that raises."""

    async def check(_context: CheckContext) -> Sequence[Finding]:
        raise error

    return check


def test_every_finding_gets_the_name_of_its_check() -> None:
    done = result(
        ("store", finds(failed("broken", "Fix it."), warning("old", "Renew it."))),
        ("launchd", finds()),
        ("rights", finds(ok("root"))),
    )
    assert done.checks == [
        CheckResult(name="store", state=CheckState.FAILED, message="broken", steps=["Fix it."]),
        CheckResult(name="store", state=CheckState.WARNING, message="old", steps=["Renew it."]),
        CheckResult(name="rights", state=CheckState.OK, message="root"),
    ]


@pytest.mark.parametrize(
    ("advice", "steps"),
    [
        (None, []),
        ("unmount it first", ["Unmount it first"]),
        ("Debian: apt\n    macOS: brew", ["Debian: apt", "macOS: brew"]),
    ],
)
def test_an_error_keeps_its_advice(advice: str | None, steps: list[str]) -> None:
    (checked,) = result(("libusb", breaks(UsbipdError("it does not work", advice=advice)))).checks
    assert (checked.state, checked.message) == (CheckState.FAILED, "it does not work")
    assert checked.steps == steps


@pytest.mark.parametrize("error", [ValueError("what?"), asyncio.CancelledError()])
def test_a_check_that_raises_hides_no_other(error: Exception) -> None:
    done = result(("store", breaks(error)), ("rights", finds(ok("root"))))
    assert [(each.name, each.state) for each in done.checks] == [
        ("store", CheckState.FAILED),
        ("rights", CheckState.OK),
    ]
    assert done.checks[0].steps


def test_the_failed_check_is_named() -> None:
    (checked,) = result(("store", breaks(ValueError("what?")))).checks
    assert "ValueError: what?" in checked.message


def test_a_check_that_hangs_times_out() -> None:
    ended = []

    async def hang(_context: CheckContext) -> Sequence[Finding]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError

    done = result(("hang", hang), ("rights", finds(ok("root"))), seconds=0.05)
    assert [each.state for each in done.checks] == [CheckState.FAILED, CheckState.OK]
    assert "0.05 s" in done.checks[0].message
    assert ended, "and was cancelled"


def test_a_check_that_hangs_in_a_thread_times_out() -> None:
    go_on = threading.Event()

    async def hang(_context: CheckContext) -> Sequence[Finding]:
        await asyncio.to_thread(go_on.wait, PATIENCE)
        return []

    async def test() -> HealthResult:
        try:
            return await examine(make_context(), [("hang", hang)], seconds=0.05)
        finally:
            go_on.set()

    assert asyncio.run(test()).checks[0].state is CheckState.FAILED


def test_checks_run_at_the_same_time() -> None:
    """Each waits for the other: run in sequence, they would never end."""
    meeting = [asyncio.Event(), asyncio.Event()]

    def meet(mine: int) -> Check:
        async def check(_context: CheckContext) -> Sequence[Finding]:
            meeting[mine].set()
            await meeting[1 - mine].wait()
            return [ok("met")]

        return check

    assert {each.state for each in result(("one", meet(0)), ("other", meet(1))).checks} == {CheckState.OK}


async def test_a_cancelled_run_leaves_no_check_running() -> None:
    ended = asyncio.Event()

    async def hang(_context: CheckContext) -> Sequence[Finding]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    examination = asyncio.create_task(examine(make_context(), [("hang", hang)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    examination.cancel()
    async with asyncio.timeout(PATIENCE):
        await ended.wait()


def test_the_worst_findings_come_first_and_their_number_is_limited() -> None:
    many = [
        *(ok(f"{number}") for number in range(40)),
        failed("broken", "Fix it."),
        warning("old", "Renew it."),
    ]
    checks = result(("binding", finds(*many))).checks
    assert [each.message for each in checks[:3]] == ["broken", "old", "0"]
    assert (len(checks), checks[-1].message) == (MOST_FINDINGS + 1, "and 18 more, none worse")
    assert checks[-1].state is CheckState.OK


def test_long_texts_are_cut() -> None:
    (checked,) = result(("store", finds(failed("x" * 10_000, "y" * 10_000)))).checks
    assert (len(checked.message), len(checked.steps[0])) == (LONGEST_TEXT, LONGEST_TEXT)


def test_the_names_are_words() -> None:
    names = [name for name, _check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", name) for name in names)


def test_every_check_applies_to_a_mac(tmp_path: Path) -> None:
    context = make_context(
        host=mac(launch_daemon=tmp_path / "job.plist"),
        power=FakeHotplug(),
        control_socket=tmp_path / "control.sock",
    )
    done = asyncio.run(examine(context))
    assert list(dict.fromkeys(each.name for each in done.checks)) == [name for name, _check in CHECKS]


def test_all_problems_at_once_fit_one_message(tmp_path: Path) -> None:
    """Hundreds of bindings that each fail with a long text, and every other problem."""
    error = ClaimError("a driver holds it " * 30, advice="do this\nand that")
    busids = [f"1-{port}" for port in range(1, 300)]
    manager = FakeManager(
        bindings=[binding(busid) for busid in busids],
        shared_devices={
            busid: shared_device(busid, worker=None, failure=Failure(error, 1.7e9)) for busid in busids
        },
    )
    context = make_context(manager=manager, control_socket=tmp_path / "no", store=FakeStore(["x" * 999] * 20))
    assert len(encode(asyncio.run(examine(context)))) < MAX_MESSAGE - 1024
