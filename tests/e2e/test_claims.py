"""Which client gets which device, and who may change that.  guest/claims.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import claims
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("claims", timeout=900)


@pytest.mark.parametrize("step", claims.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
