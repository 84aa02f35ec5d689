"""Starts the machines of the selected scenarios.  Runs on the host.

A test module names its scenario as `JOB` and takes the fixture `running`.
"""

from collections.abc import Iterator

import pytest

from tests.e2e.running import Machines, RunningScenario


@pytest.fixture(scope="session")
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """All machines of this session, started in the order of their tests."""
    machines = Machines()
    modules = [item.module for item in request.session.items if isinstance(item, pytest.Function)]
    for job in dict.fromkeys(module.JOB for module in modules if hasattr(module, "JOB")):
        machines.begin(job)
    yield machines
    machines.end()


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, machines: Machines) -> RunningScenario:
    """The scenario of this module."""
    return RunningScenario(machines, request.module.JOB)
