"""Devices claimed through the macOS backend of libusb, for a stock client: guest/software_mac.py.

`python -m tests.mac.build` builds what the guest needs: it has no compiler.
"""

from typing import Final

import pytest

from tests.e2e.guest import software_mac
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("software_mac", timeout=900)


@pytest.mark.parametrize("step", software_mac.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
