"""Checks: the worst first, and one for those that differ in the device only."""

import pytest

from usbipd.cli.check_groups import grouped, problems
from usbipd.ipc.control_messages import CheckResult, CheckState


def check(
    message: str, *steps: str, state: CheckState = CheckState.OK, name: str = "bindings"
) -> CheckResult:
    return CheckResult(name=name, state=state, message=message, steps=list(steps))


def messages(*checks: CheckResult) -> list[str]:
    return [each.message for each in grouped(checks)]


def test_worst_first_and_otherwise_stable() -> None:
    states = [CheckState.OK, CheckState.WARNING, CheckState.FAILED, CheckState.OK, CheckState.FAILED]
    checks = [check(f"number {'abcde'[number]}", state=state) for number, state in enumerate(states)]
    assert messages(*checks) == ["number c", "number e", "number b", "number a", "number d"]


def test_problems_are_the_checks_that_are_not_ok() -> None:
    checks = [check("a"), check("b", state=CheckState.WARNING), check("c", state=CheckState.FAILED)]
    assert [each.message for each in problems(checks)] == ["b", "c"]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            ["0781:5581 at 1-1: shared", "046d:c52b at 1-2.3: shared"],
            "0781:5581 at 1-1: shared (the same for 1-2.3)",
        ),
        (
            ["0781:5581: absent", "046d:c52b: absent"],
            "0781:5581: absent (the same for 046d:c52b)",
        ),
        (
            ["1-1 has no driver", "1-2 has no driver", "1-3 has no driver"],
            "1-1 has no driver (the same for 1-2, 1-3)",
        ),
        (["all is well", "all is well", "all is well"], "all is well (3 times)"),
    ],
)
def test_checks_that_differ_in_the_device_only_are_merged(said: list[str], shown: str) -> None:
    assert messages(*(check(each) for each in said)) == [shown]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (check("1-1: shared"), check("1-2: attached")),
        (check("1-1: shared"), check("1-2: shared", name="drivers")),
        (check("1-1: shared"), check("1-2: shared", state=CheckState.WARNING)),
        (check("1-1: lost", "Kill it: `kill 17`."), check("1-2: lost", "Kill it: `kill 18`.")),
        (check("worker[17] 1-1 is stopped"), check("worker[18] 1-2 is stopped")),
        (check("listening on 192.0.2.1"), check("listening on 192.0.2.2")),
        (check("[2001:db8:1111:2222::1] is closed"), check("[2001:db8:1111:3333::1] is closed")),
        (check("since 2026-12-01"), check("since 2026-12-02")),
    ],
)
def test_other_checks_are_not_merged(one: CheckResult, other: CheckResult) -> None:
    assert len(grouped([one, other])) == 2


def test_steps_are_those_of_the_first_device() -> None:
    [one] = grouped([check(f"{each} is lost", f"Run `usbipd release {each}`.") for each in ("1-1", "1-2")])
    assert one.steps == ["Run `usbipd release 1-1`."]
    assert one.message == "1-1 is lost (the same for 1-2)"
