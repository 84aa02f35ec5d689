"""How findings read."""

import pytest

from usbipd.cli.colour import SEQUENCE, vivid
from usbipd.cli.doctor import _summary, format_checks
from usbipd.ipc.control_messages import CheckResult, CheckState


def check(state: CheckState, name: str = "store", message: str = "m", *steps: str) -> CheckResult:
    return CheckResult(name=name, state=state, message=message, steps=list(steps))


def test_steps_are_numbered_and_sentences_wrapped() -> None:
    checks = [
        check(CheckState.OK, "rights", "root"),
        check(CheckState.FAILED, "store", "it is damaged in several places", "Stop it.", "Then go on " * 3),
    ]
    assert format_checks(checks, 40) == (
        "failed   store   it is damaged in\n"
        "         several places\n"
        "         1. Stop it.\n"
        "         2. Then go on Then go on Then\n"
        "            go on\n"
        "ok       rights  root\n"
    )


def test_the_state_has_its_colour_and_wraps_as_without() -> None:
    checks = [check(CheckState.FAILED, "store", "it is damaged in several places"), check(CheckState.OK)]
    text = format_checks(checks, 40, vivid)
    assert SEQUENCE.sub("", text) == format_checks(checks, 40)
    assert text.startswith("\x1b[1;31mfailed\x1b[0m   store  it is")
    assert "\x1b[32mok\x1b[0m       store  m\n" in text
    assert format_checks(checks, 3, vivid)  # where even the word does not fit


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([], "No problems found."),
        ([CheckState.OK], "No problems found."),
        ([CheckState.OK, CheckState.WARNING], "1 warning"),
        ([CheckState.FAILED, CheckState.WARNING, CheckState.WARNING], "1 failure, 2 warnings"),
        ([CheckState.FAILED, CheckState.FAILED], "2 failures"),
    ],
)
def test_summary(states: list[CheckState], text: str) -> None:
    assert _summary([check(state) for state in states]) == text
