"""`make bench`: how fast usbipd is, as ratios to what is possible and to the kernel's own server.

    python -m tests.bench [--turns N] [--seconds S] [--boots N] [--output DIRECTORY] [PART ...]

A benchmark, not a test: it asserts no time, and its exit code says only whether it could measure.
docs/performance.md says how to read what it prints.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench import (
    binary,
    curves,
    devices,
    footprint,
    in_vm,
    instructions,
    loopback,
    over_network,
    over_usbfs,
    report,
)
from tests.bench.programs import build
from tests.bench.result import Result


@dataclass(frozen=True)
class Effort:
    """How much is measured: turns of each row, seconds of each run, boots of the virtual machine."""

    turns: int
    seconds: float
    boots: int


Part = Callable[[Path, Effort], Sequence[Result]]

PARTS: Final[dict[str, Part]] = {
    "loopback": lambda work, effort: loopback.compare(work, effort.turns, effort.seconds),
    "devices": lambda work, effort: devices.compare(work, effort.turns, effort.seconds),
    "mixed": lambda work, effort: over_network.mixed(work, effort.turns, effort.seconds),
    "lossy": lambda work, effort: over_network.lossy(work, effort.turns, effort.seconds),
    "stall": lambda work, effort: over_network.stall(work, effort.turns, effort.seconds),
    "vm": lambda work, effort: in_vm.compare(work, effort.turns, effort.boots),
    "usbfs": lambda work, effort: over_usbfs.compare(work, effort.turns, effort.seconds),
    "instructions": lambda work, _effort: instructions.compare(work),
    "footprint": lambda work, effort: footprint.compare(work, effort.turns),
    "binary": lambda work, effort: binary.compare(work, effort.turns),
    "curves": lambda work, effort: curves.draw(work, min(effort.turns, 3), effort.seconds / 2),
}
"""By name, in the order in which they run; each takes its directory."""
NEEDS_ROOT: Final = frozenset({"mixed", "lossy", "stall"})
"""They make network namespaces, and run before all other programs."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures usbipd.")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="turns of each row (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of each run (default: 1)")
    parser.add_argument(
        "--boots", type=int, default=3, metavar="N", help="boots of each virtual machine (default: 3)"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIRECTORY")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known parts: {', '.join(PARTS)}")
    if min(options.turns, options.boots) < 1 or options.seconds <= 0:
        parser.error("--turns, --seconds and --boots must be positive")
    chosen = options.parts or list(PARTS)
    left_out = [] if os.geteuid() == 0 else [name for name in chosen if name in NEEDS_ROOT]
    if left_out and options.parts:
        parser.error(f"{', '.join(left_out)}: root is needed; try sudo")
    if left_out:
        print(f"left out, since root is needed: {', '.join(left_out)}", file=sys.stderr)
    options.output.mkdir(parents=True, exist_ok=True)
    build(options.output)
    effort = Effort(options.turns, options.seconds, options.boots)
    results: list[Result] = []
    table = ""
    for name in (name for name in chosen if name not in left_out):
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += PARTS[name](options.output, effort)
        table = report.write(options.output, results)  # now: a part that fails later takes nothing with it
    print(table)
    print(f"\nReport and plots: {options.output}/", file=sys.stderr)


if __name__ == "__main__":
    main()
