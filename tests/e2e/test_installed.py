"""The installation of `make install`, under systemd.  guest/installed.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import installed
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("installed", timeout=600, hardware=installed.HARDWARE, systemd=True)


@pytest.mark.parametrize("step", installed.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
