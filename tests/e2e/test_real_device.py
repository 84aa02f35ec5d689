"""A real device in a real kernel: bind, attach, use, detach, unbind.  guest/real_device.py has the steps."""

from collections.abc import Iterator

import pytest

from tests.e2e.guest import real_device
from tests.e2e.running import RunningScenario, run_scenario


@pytest.fixture(scope="module")
def running() -> Iterator[RunningScenario]:
    with run_scenario("real_device", timeout=600) as running:
        yield running


@pytest.mark.parametrize("step", real_device.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
