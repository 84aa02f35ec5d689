"""Devices written in Python, with the quirks of real ones.  guest/virtual_devices.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import virtual_devices
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("virtual_devices", timeout=900)


@pytest.mark.parametrize("step", virtual_devices.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
