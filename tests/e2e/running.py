"""Runs scenarios, each in a separate virtual machine, for the tests.  Runs on the host."""

import os
import re
import shlex
import sys
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.vm.machine import DIED, TIMED_OUT, Machine, tail
from tests.e2e.vm.prepare import PrepareError

ROOT: Final = Path(__file__).resolve().parents[2]

AT_ONCE: Final = min(os.cpu_count() or 1, 4)
"""Machines that run in parallel: each takes a gigabyte and one processor."""

LOGS: Final = (("output.log", 60), ("daemon.log", 80), ("console.log", 40), ("qemu.log", 10))
"""Shown on failure: files of the job directory, and how many of their last lines."""
NOISE: Final = re.compile(r" DEBUG extension\[\d+\]: (root\[\d+\] requests|answered root\[\d+\]:)")
"""Not shown: a waiting step polls the daemon several times a second."""


@dataclass(frozen=True)
class Job:
    """guest/NAME.py with its arguments, in a machine that is killed after `timeout` seconds."""

    name: str
    timeout: float
    arguments: tuple[str, ...] = ()
    hardware: tuple[str, ...] = ()
    """QEMU options for added hardware, see `Machine`."""
    systemd: bool = False
    """Whether systemd is process 1 of the guest."""

    @property
    def command(self) -> list[str]:
        """The command that the guest runs."""
        return [sys.executable, "-m", f"tests.e2e.guest.{self.name}", *self.arguments]


class Machines:
    """Runs jobs in the given order, some in parallel."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._started: dict[Job, Future[Machine]] = {}

    def begin(self, job: Job) -> None:
        """Start the job as soon as a machine is available."""
        started = self._started[job] = Future()
        self._threads.submit(self._run, job, started)

    def get(self, job: Job) -> Machine:
        """The machine of a job, as soon as it has started.  Raises `PrepareError`."""
        return self._started[job].result()

    def end(self) -> None:
        """Kill running machines, and start no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for started in self._started.values():
            if not started.cancel() and started.exception() is None:
                started.result().kill()
        self._threads.shutdown()

    def _run(self, job: Job, started: Future[Machine]) -> None:
        if started.set_running_or_notify_cancel():
            try:
                with Machine(
                    job.name,
                    job.command,
                    directory=ROOT,
                    timeout=job.timeout,
                    hardware=job.hardware,
                    systemd=job.systemd,
                ) as machine:
                    started.set_result(machine)
                    machine.wait()
            except PrepareError as error:
                started.set_exception(error)


class RunningScenario:
    """Waits for the guest's reports; on failure fails the test with the logs."""

    def __init__(self, machines: Machines, job: Job) -> None:
        self._job = job
        self._shown = False
        try:
            self._machine = machines.get(job)
        except (PrepareError, CancelledError) as error:
            pytest.fail(f"no machine: {error}", pytrace=False)

    @property
    def directory(self) -> Path:
        """The job directory, with files of the guest and QEMU."""
        return self._machine.job

    def expect(self, step: str) -> None:
        """Wait for the line of `step`, and fail unless it arrives and is `ok`."""
        ok, not_ok = f"ok {step}", f"not ok {step}: "
        line = self._machine.wait_for(lambda line: line == ok or line.startswith(not_ok))
        if line is None:
            self._fail(f"{step}: never reached, {self._end()}")
        elif line != ok:
            self._fail(line)

    def expect_success(self) -> None:
        """Wait until the machine is off, and fail unless the scenario exited with 0."""
        if self._machine.wait() != 0:
            self._fail(self._end())

    def _end(self) -> str:
        status = self._machine.wait()
        reasons = {TIMED_OUT: "the machine timed out", DIED: "the machine died"}
        return reasons.get(status, f"the scenario exited with status {status}")

    def _fail(self, why: str) -> None:
        """Fails with all logs, but only once: consequential failures need none."""
        if not self._shown:
            self._shown = True
            print(f"all logs of `{shlex.join(self._job.command)}` are in {self.directory}")
            for name, lines in LOGS:
                print(f"---- {name}, its last {lines} lines ----")
                print(tail(self.directory / name, lines, NOISE))
        pytest.fail(why, pytrace=False)
