"""The devices of a Mac: cases in a process of a software Mac."""

from collections.abc import Callable


def test_discovery(in_process: Callable[..., None]) -> None:
    in_process("discovery_cases.py")
