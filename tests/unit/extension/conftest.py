"""Fixtures for the tests of the extension."""

from pathlib import Path

import pytest

from tests.unit.extension.fakes import FakeSpawner, FakeSysfs
from tests.unit.extension.managed_host import Host
from usbipd.extension import supervisor


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that died is restarted at once."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.001)


@pytest.fixture
def spawner() -> FakeSpawner:
    return FakeSpawner()


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


@pytest.fixture
def host(spawner: FakeSpawner, sysfs: FakeSysfs) -> Host:
    """A host whose manager has not been started yet."""
    return Host(spawner, sysfs)
