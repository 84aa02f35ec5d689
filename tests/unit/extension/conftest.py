"""What the tests of the extension share."""

from pathlib import Path

import pytest

from tests.unit.extension.fakes import FakeSpawner, FakeSysfs
from usbipd.extension import supervisor


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that died is started again at once."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.001)


@pytest.fixture
def spawner() -> FakeSpawner:
    return FakeSpawner()


@pytest.fixture
def sysfs(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)
