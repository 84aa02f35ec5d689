"""The host sleeps and wakes up.  guest/sleep.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import sleep
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("sleep", timeout=600)


@pytest.mark.parametrize("step", sleep.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
