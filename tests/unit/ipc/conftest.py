"""Tests of channels run in asyncio's debug mode, which finds what was never awaited."""

import pytest


@pytest.fixture(autouse=True)
def debug_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loop that is made from now on is in debug mode."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
