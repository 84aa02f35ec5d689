"""Simulated devices, used by a real kernel.  guest/simulated_devices.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import simulated_devices
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("simulated_devices", timeout=600)


@pytest.mark.parametrize("step", simulated_devices.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
