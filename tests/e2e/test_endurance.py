"""Killed processes, unplugged devices, many attachments.  guest/endurance.py has the steps.

KILLS, REPLUGS and ATTACHES in the environment say how many rounds of each; `make soak` has the large numbers.
A failure names its seed, which SEED takes again.
"""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.guest import endurance
from tests.e2e.running import RunningScenario, run_scenario

ROUNDS: Final = {
    name: int(os.environ.get(name, default))
    for name, default in (("KILLS", 6), ("REPLUGS", 6), ("ATTACHES", 12))
}
SECONDS_A_ROUND: Final = {"KILLS": 60, "REPLUGS": 30, "ATTACHES": 8}
"""At most, in an emulated machine on a busy host."""


@pytest.fixture(scope="module")
def running() -> Iterator[RunningScenario]:
    arguments = [f"--{name.lower()}={rounds}" for name, rounds in ROUNDS.items()]
    if seed := os.environ.get("SEED"):
        arguments.append(f"--seed={seed}")
    timeout = 600 + sum(SECONDS_A_ROUND[name] * rounds for name, rounds in ROUNDS.items())
    with run_scenario("endurance", timeout, *arguments) as running:
        yield running


@pytest.mark.parametrize("step", endurance.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
