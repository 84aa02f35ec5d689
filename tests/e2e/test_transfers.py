"""Every transfer type at each speed.  guest/transfers.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import transfers
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("transfers", timeout=1200)


@pytest.mark.parametrize("step", transfers.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
