"""A real device in a real kernel: bind, attach, use, detach, unbind.  guest/real_device.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import real_device
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("real_device", timeout=600)


@pytest.mark.parametrize("step", real_device.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
