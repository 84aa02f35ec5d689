"""Every fault of a session, under load.  guest/faults.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import faults
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("faults", timeout=900)


@pytest.mark.parametrize("step", faults.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
