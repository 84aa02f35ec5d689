"""Simulated devices over loopback, beside the null server.  Runs in the bench.

Both serve the same load generator on one processor, in turns.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench.programs import Kind, Load, Outcome, Server, daemon, null_server, run_load, servers_of
from tests.bench.result import Comparison, Direction

KIB: Final = 1024
SEND_BUFFER: Final = 131072
"""Bytes of SO_SNDBUF on both sides where replies are large: a deeper queue falls out of the cache."""

AGAINST: Final = "null server (batch)"

# what, kind, bytes, URBs in flight, SO_SNDBUF, wanted ratio of the rates
TARGETS: Final[tuple[tuple[str, Kind, int, int, int, float | None], ...]] = (
    ("control 18 B, depth 1", "control", 18, 1, 0, 0.9),
    ("control 18 B, depth 32", "control", 18, 32, 0, 0.7),
    ("bulk IN 512 B, depth 32", "bulk-in", 512, 32, 0, 0.7),
    ("bulk OUT 512 B, depth 32", "bulk-out", 512, 32, 0, 0.7),
    ("bulk IN 16 KiB, depth 32", "bulk-in", 16 * KIB, 32, 0, 0.8),
    ("bulk OUT 16 KiB, depth 32", "bulk-out", 16 * KIB, 32, 0, 0.8),
    ("bulk IN 64 KiB, depth 32, the kernel's send buffer", "bulk-in", 64 * KIB, 32, 0, None),
    ("bulk IN 64 KiB, depth 32", "bulk-in", 64 * KIB, 32, SEND_BUFFER, 0.9),
    ("bulk OUT 64 KiB, depth 32", "bulk-out", 64 * KIB, 32, SEND_BUFFER, 0.9),
    ("bulk IN 256 KiB, depth 32", "bulk-in", 256 * KIB, 32, SEND_BUFFER, 0.9),
    ("bulk OUT 256 KiB, depth 32", "bulk-out", 256 * KIB, 32, SEND_BUFFER, 0.9),
)
CPU_TARGET: Final = 1.5
SMALL: Final = 512


def compare(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """The targets on one processor; each turn is `seconds` for either side."""
    results: list[Comparison] = []
    for send_buffer in (0, SEND_BUFFER):
        with ExitStack() as stack:
            ours, null = both(stack, work, send_buffer)
            for what, kind, size, depth, wanted_buffer, target in TARGETS:
                if wanted_buffer == send_buffer:
                    load = Load(kind, size, depth, seconds)
                    results += _rows(what, target, load, _in_turns(work, ours, null, load, turns))
    return results


def both(stack: ExitStack, work: Path, send_buffer: int) -> tuple[Server, Server]:
    """Ours and the null server, running until `stack` is left; `send_buffer` of 0: as the system has it."""
    config = f"[limits]\nsend_buffer = {send_buffer}\n" if send_buffer else ""
    options = ("-s", str(send_buffer)) if send_buffer else ()
    [ours] = servers_of(stack.enter_context(daemon(config=config)))
    return ours, stack.enter_context(null_server(work, *options))


def _in_turns(
    work: Path, ours: Server, null: Server, load: Load, turns: int
) -> list[tuple[Outcome, Outcome]]:
    return [(run_load(work, ours, load), run_load(work, null, load)) for _ in range(turns)]


def _rows(
    what: str, target: float | None, load: Load, pairs: list[tuple[Outcome, Outcome]]
) -> Iterable[Comparison]:
    def row(title: str, unit: str, wanted: float | None, direction: Direction) -> Comparison:
        name = {"URB/s": "urbs_s", "MB/s": "MB_s", "us/URB": "server_cpu_us"}[unit]
        ours, reference = (tuple(getattr(pair[side], name) for pair in pairs) for side in (0, 1))
        return Comparison(title, unit, ours, reference, AGAINST, wanted, direction)

    yield row(what, "URB/s" if load.size <= SMALL else "MB/s", target, "at least")
    if load.size <= SMALL and load.depth > 1:
        yield row(f"{what}: CPU of the server", "us/URB", CPU_TARGET, "at most")
