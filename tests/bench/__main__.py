"""`make bench`: how fast usbipd is, as ratios to what is possible and to the kernel's own server.

    python -m tests.bench [--turns N] [--seconds S] [--output DIRECTORY] [PART ...]

A benchmark, not a test: it asserts no time, and its exit code says only whether it could measure.
docs/performance.md says how to read what it prints.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
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
    over_usbfs,
    report,
)
from tests.bench.programs import build
from tests.bench.result import Result

Part = Callable[[Path, int, float], Sequence[Result]]

PARTS: Final[dict[str, Part]] = {
    "loopback": loopback.compare,
    "devices": devices.compare,
    "vm": lambda work, turns, _seconds: in_vm.compare(work, turns),
    "usbfs": over_usbfs.compare,
    "instructions": lambda work, _turns, _seconds: instructions.compare(work),
    "footprint": lambda work, turns, _seconds: footprint.compare(work, turns),
    "binary": lambda work, turns, _seconds: binary.compare(work, turns),
    "curves": lambda work, turns, seconds: curves.draw(work, min(turns, 3), seconds / 2),
}
"""By name, in the order in which they run; each takes its directory, turns, and seconds of a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures usbipd.")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="turns of each row (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of each run (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="DIRECTORY")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known parts: {', '.join(PARTS)}")
    if options.turns < 1 or options.seconds <= 0:
        parser.error("--turns and --seconds must be positive")
    options.output.mkdir(parents=True, exist_ok=True)
    build(options.output)
    results: list[Result] = []
    table = ""
    for name in options.parts or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += PARTS[name](options.output, options.turns, options.seconds)
        table = report.write(options.output, results)  # now: a part that fails later takes nothing with it
    print(table)
    print(f"\nReport and plots: {options.output}/", file=sys.stderr)


if __name__ == "__main__":
    main()
