"""The host sleeps and wakes up.  guest/sleep.py has the steps."""

from collections.abc import Iterator

import pytest

from tests.e2e.guest import sleep
from tests.e2e.running import RunningScenario, run_scenario


@pytest.fixture(scope="module")
def running() -> Iterator[RunningScenario]:
    with run_scenario("sleep", timeout=600) as running:
        yield running


@pytest.mark.parametrize("step", sleep.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
