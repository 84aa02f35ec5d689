"""Simulated devices, used by a real kernel.  guest/simulated_devices.py has the steps."""

from collections.abc import Iterator

import pytest

from tests.e2e.guest import simulated_devices
from tests.e2e.running import RunningScenario, run_scenario


@pytest.fixture(scope="module")
def running() -> Iterator[RunningScenario]:
    with run_scenario("simulated_devices", timeout=600) as running:
        yield running


@pytest.mark.parametrize("step", simulated_devices.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
