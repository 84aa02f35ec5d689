"""Devices with odd descriptors, beside the kernel's own server.  guest/odd_devices.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import odd_devices
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("odd_devices", timeout=900)


@pytest.mark.parametrize("step", odd_devices.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
