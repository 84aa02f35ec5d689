"""A scenario running in a virtual machine of its own, as the tests see it.  Runs on the host."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.vm.machine import DIED, TIMED_OUT, Machine, tail
from tests.e2e.vm.prepare import PrepareError

ROOT: Final = Path(__file__).resolve().parents[2]

LOGS: Final = (("output.log", 60), ("daemon.log", 80), ("console.log", 40), ("qemu.log", 10))
"""What a failure shows: files of the job directory, and how many of their last lines."""


class RunningScenario:
    """Waits for what the guest reports; fails the test that asked, with the logs."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._shown = False

    def expect(self, step: str) -> None:
        """Wait for the line of `step`, and fail unless it is there and `ok`."""
        ok, not_ok = f"ok {step}", f"not ok {step}: "
        line = self._machine.wait_for(lambda line: line == ok or line.startswith(not_ok))
        if line is None:
            self._fail(f"{step}: never reached, {self._end()}")
        elif line != ok:
            self._fail(line)

    def expect_success(self) -> None:
        """Wait until the machine is off, and fail unless the scenario ended with 0."""
        if self._machine.wait() != 0:
            self._fail(self._end())

    def _end(self) -> str:
        status = self._machine.wait()
        reasons = {TIMED_OUT: "the machine ran out of time", DIED: "the machine died"}
        return reasons.get(status, f"the scenario ended with status {status}")

    def _fail(self, why: str) -> None:
        """With all logs, but only once: a step that fails because an earlier one did needs no more."""
        job = self._machine.job
        parts = [why, f"all logs are in {job}"]
        if not self._shown:
            self._shown = True
            for name, lines in LOGS:
                parts += [f"---- {name}, its last {lines} lines ----", tail(job / name, lines)]
        pytest.fail("\n".join(parts), pytrace=False)


@contextmanager
def run_scenario(name: str, timeout: float, *arguments: str) -> Iterator[RunningScenario]:
    """guest/NAME.py in a machine, which is off at the end of the block, or after `timeout` seconds."""
    command = [sys.executable, "-m", f"tests.e2e.guest.{name}", *arguments]
    with ExitStack() as stack:
        try:
            machine = stack.enter_context(Machine(name, command, directory=ROOT, timeout=timeout))
        except PrepareError as error:
            pytest.fail(f"there is no machine: {error}", pytrace=False)
        yield RunningScenario(machine)
