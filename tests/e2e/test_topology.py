"""Isochronous playback, hubs, several clients over IPv4 and IPv6.  guest/topology.py has the steps."""

from typing import Final

import pytest

from tests.e2e.guest import topology
from tests.e2e.running import Job, RunningScenario

JOB: Final = Job("topology", timeout=900, hardware=topology.HARDWARE)
WAV_HEADER: Final = 44  # QEMU, audio/wavaudio.c


@pytest.mark.parametrize("step", topology.SCENARIO.names)
def test_step(running: RunningScenario, step: str) -> None:
    running.expect(step)


def test_whole_scenario_succeeds(running: RunningScenario) -> None:
    running.expect_success()


def test_loudspeaker_played_every_sample_once_and_in_order(running: RunningScenario) -> None:
    running.expect_success()  # QEMU writes the end of the file when the machine powers off
    played = (running.directory / "played.wav").read_bytes()[WAV_HEADER:]
    before, noise, after = played.partition(topology.noise())
    assert noise, "the sound played differs from the sound sent"
    assert not any(before + after), "sound was played before or after"
