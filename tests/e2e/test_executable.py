"""The executable with a real device.  guest/executable.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import executable
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("executable", timeout=600)


@pytest.mark.parametrize("step", executable.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
