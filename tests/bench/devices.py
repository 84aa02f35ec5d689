"""Many devices at once, each with its own client.  Runs in the bench.

One device and its client have one processor; sixteen and their clients have all of them.  Sixteen null
servers in the same place show what the machine loses when it runs so many programs in turns.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Final

from tests.bench.programs import (
    Load,
    Outcome,
    Server,
    daemon,
    null_server,
    outcome_of,
    run_load,
    servers_of,
    start_load,
)
from tests.bench.result import Comparison

DEVICES: Final = 16
TOTAL_TARGET: Final = 0.9
SHARE_TARGET: Final = 0.5


def compare(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """The total of all devices, and the slowest of them; with one URB in flight for each, and with 32."""
    with ExitStack() as stack:
        [single] = servers_of(stack.enter_context(daemon()))
        simulate = ",".join(["loopback"] * DEVICES)
        many = servers_of(stack.enter_context(daemon(simulate, processors=all_processors())))
        nulls = [stack.enter_context(null_server(work, processors=all_processors())) for _ in range(DEVICES)]
        return [
            row
            for depth in (1, 32)
            for row in _rows(work, single, many, nulls, Load("control", 18, depth, seconds), turns)
        ]


def _rows(
    work: Path, single: Server, many: list[Server], nulls: list[Server], load: Load, turns: int
) -> list[Comparison]:
    processors = len(all_processors())
    alone: list[float] = []
    ours: list[list[float]] = []
    null: list[list[float]] = []
    for _ in range(turns):
        alone.append(run_load(work, single, load).urbs_s * processors)
        ours.append([each.urbs_s for each in run_together(work, many, load)])
        null.append([each.urbs_s for each in run_together(work, nulls, load)])
    what = f"{DEVICES} devices at once, control 18 B, depth {load.depth}"
    totals = tuple(map(sum, ours))
    return [
        Comparison(
            f"{what}: all",
            "URB/s",
            totals,
            tuple(alone),
            f"one device on one processor, times {processors}",
            TOTAL_TARGET,
        ),
        Comparison(f"{what}: all", "URB/s", totals, tuple(map(sum, null)), f"{DEVICES} null servers"),
        Comparison(
            f"{what}: the slowest",
            "URB/s",
            tuple(map(min, ours)),
            tuple(map(mean, ours)),
            "their average",
            SHARE_TARGET,
        ),
    ]


def all_processors() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))


def run_together(work: Path, servers: list[Server], load: Load) -> list[Outcome]:
    """Loads all of them at once, on all processors."""
    running = [start_load(work, server, load, all_processors()) for server in servers]
    return [outcome_of(each) for each in running]
