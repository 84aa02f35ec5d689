"""Devices of several classes with the client's class drivers.  guest/class_drivers.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import class_drivers
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("class_drivers", timeout=900)


@pytest.mark.parametrize("step", class_drivers.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
