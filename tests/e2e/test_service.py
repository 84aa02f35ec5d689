"""What the daemon keeps across restarts, and its logs.  guest/service.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import service
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("service", timeout=900)


@pytest.mark.parametrize("step", service.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
