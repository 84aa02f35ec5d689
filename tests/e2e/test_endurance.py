"""Killed processes, unplugged devices, many attachments.  guest/endurance.py has the steps.

KILLS, REPLUGS and ATTACHES in the environment set the number of rounds; `make soak` uses large numbers.
A failure shows the seed of its choices; SEED repeats them.
"""

import os
import random
from typing import Final

import pytest

from tests.e2e.guest import endurance
from tests.e2e.running import Job, RunningScenario

ROUNDS: Final = {
    name: int(os.environ.get(name, default))
    for name, default in (("KILLS", 6), ("REPLUGS", 6), ("ATTACHES", 12))
}
SECONDS_A_ROUND: Final = {"KILLS": 60, "REPLUGS": 30, "ATTACHES": 8}
"""Upper limit, for an emulated machine on a busy host."""
SEED: Final = int(os.environ.get("SEED", random.getrandbits(32)))

JOB: Final = Job(
    "endurance",
    timeout=600 + sum(SECONDS_A_ROUND[name] * rounds for name, rounds in ROUNDS.items()),
    arguments=(*(f"--{name.lower()}={rounds}" for name, rounds in ROUNDS.items()), f"--seed={SEED}"),
)


@pytest.mark.parametrize("step", endurance.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()
