"""A real device in a virtual machine: ours beside the kernel's own server.  Runs in the bench.

The machine has one processor.  Two kinds of clock are asked, each in a separate boot:

- *counted*: QEMU's -icount.  The guest's clock is the number of instructions that it has carried out, one a
  nanosecond, and leaps over the time in which there is nothing to do.  What else the host does leaves no
  trace.  But memory is all alike there: no cache, no TLB, and another address space costs nothing.  It is the
  work that a server makes.
- *emulated*: the guest's clock is the host's, as the emulator needs it.  It is noisy, and the emulator
  forgets every address that it has looked up whenever the address space changes: twice an URB for a server
  that is a process, never for one that is a thread of the kernel.  A processor forgets much less.

Hardware lies between the two, so both have the same targets.

What lies where in memory is decided at a boot, and some rows depend on it.  So there are several boots.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.bench.result import Comparison, Direction
from tests.e2e.vm.machine import Machine, tail

ROOT: Final = Path(__file__).resolve().parents[2]
TIMEOUT: Final = 240.0
"""Seconds for a boot, and for each turn."""

CLOCKS: Final[Mapping[str, Sequence[str]]] = {
    "counted": ("-icount", "shift=0,sleep=off"),
    "emulated": (),
}
"""Options of QEMU by the name of the clock."""

HARDWARE: Final = (
    *("-smp", "1"),
    *("-device", "qemu-xhci,id=usb,addr=0x10"),
    # a medium that takes no time, so that the way to it is all that is measured
    *("-blockdev", f"null-co,node-name=stick,size={256 << 20},read-zeroes=on"),
    *("-device", "usb-storage,bus=usb.0,port=1,drive=stick"),
)

AGAINST: Final = "usbip-host"
ROWS: Final[tuple[tuple[str, str, str, float | None, Direction], ...]] = (
    ("read", "disk, reads of 1 MiB", "MB/s", 1.0, "at least"),
    ("read-commands", "disk, reads of 1 MiB: commands for each", "commands", None, "at most"),
    ("write", "disk, writes of 1 MiB", "MB/s", 1.0, "at least"),
    ("small-reads", "disk, reads of 4 KiB", "reads/s", 1.0, "at least"),
    ("read-cpu", "disk, 64 MiB read: processor of the whole guest", "s", 1.2, "at most"),
    ("control", "control 18 B, depth 1", "URB/s", 1.0, "at least"),
    *(
        (f"{kind} {size}", f"{name} {text}, depth 16", "URB/s", 1.0, "at least")
        for size, text in ((512, "512 B"), *((kib * 1024, f"{kib} KiB") for kib in (4, 16, 64, 256)))
        for kind, name in (("bulk-in", "bulk IN"), ("bulk-out", "bulk OUT"))
    ),
)
"""As side_by_side.py calls it, what it is, unit, wanted ratio if there is one."""


def compare(work: Path, turns: int, boots: int) -> list[Comparison]:
    """Each row by each clock.  `work` has the load generator.  Exits when a machine fails."""
    results = []
    for clock, options in CLOCKS.items():
        figures = [_measure(work, turns, clock, options) for _ in range(boots)]
        results += [
            Comparison(
                f"VM, {clock}: {what}",
                unit,
                tuple(sample for boot in figures for sample in boot[row]["ours"]),
                tuple(sample for boot in figures for sample in boot[row][AGAINST]),
                AGAINST,
                target,
                direction,
                boots,
            )
            for row, what, unit, target, direction in ROWS
        ]
    return results


def _measure(
    work: Path, turns: int, clock: str, options: Sequence[str]
) -> Mapping[str, Mapping[str, list[float]]]:
    """The samples of one boot, by row and server."""
    load = work.resolve() / "usbip_load"
    command = [sys.executable, "-m", "tests.bench.guest.side_by_side", os.fspath(load), str(turns)]
    with Machine(
        f"bench-{clock}",
        command,
        directory=ROOT,
        timeout=TIMEOUT * (1 + turns),
        hardware=(*HARDWARE, *options),
    ) as machine:
        status = machine.wait()
    if status != 0:
        sys.exit(
            f"the machine of the {clock} clock ended with {status}; its logs are in {machine.job}:\n"
            f"{tail(machine.job / 'output.log', 30)}\n{tail(machine.job / 'console.log', 10)}"
        )
    figures: Mapping[str, Mapping[str, list[float]]] = json.loads((machine.job / "figures.json").read_text())
    return figures
