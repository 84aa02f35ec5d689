"""Tests of channels run in asyncio's debug mode, which finds coroutines that were never awaited."""

import pytest


@pytest.fixture(autouse=True)
def debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new loop is in debug mode."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
