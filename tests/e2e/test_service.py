"""What the daemon keeps over its ends, and what it logs.  guest/service.py has the steps."""

from collections.abc import Iterator

import pytest

from tests.e2e.guest import service
from tests.e2e.running import RunningScenario, run_scenario


@pytest.fixture(scope="module")
def running() -> Iterator[RunningScenario]:
    with run_scenario("service", timeout=900) as running:
        yield running


@pytest.mark.parametrize("step", service.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
