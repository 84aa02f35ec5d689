"""Instructions of a process that runs under callgrind, and in which libraries.  Runs in the bench.

Format of the dumps: Valgrind manual, "Callgrind Format Specification".
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench.programs import TIMEOUT

_OBJECT: Final = re.compile(r"(c?ob)=\((\d+)\)(?: (.*))?")
_COST: Final = re.compile(r"[+*\d-]\S* (\d+)")


def watch(work: Path) -> tuple[str, ...]:
    """The command that starts a process whose instructions are counted from `start` on."""
    return (
        *("valgrind", "--tool=callgrind", "-q", "--instr-atstart=no"),
        f"--callgrind-out-file={work.absolute()}/callgrind.%p",
    )


def start(pid: int) -> None:
    """Counts from now on.  The process must have done something already: until then it takes no orders."""
    _order("--instr=on", pid)


def instructions_during(work: Path, pid: int, run: Callable[[], object]) -> Path:
    """What the process does meanwhile, as a dump in `work`; `start` was called before."""
    _dump(work, pid)
    run()
    return _dump(work, pid)


def total(dump: Path) -> int:
    """Instructions."""
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        sys.exit(f"{dump}: no total")
    return int(found[1])


def by_library(dump: Path) -> Counter[tuple[str, str]]:
    """Instructions by file name of the library and of the one that it calls.

    (library, "") are the library's own; (library, other) all that its calls of the other one cost.
    """
    names: dict[str, str] = {}
    costs: Counter[tuple[str, str]] = Counter()
    caller = called = ""
    is_call = False
    for line in dump.read_text().splitlines():
        if found := _OBJECT.fullmatch(line):
            kind, number, path = found.groups()
            if path is not None:
                names[number] = Path(path).name
            called = names[number]
            if kind == "ob":
                caller = called
        elif line.startswith("calls="):
            is_call = True
        elif found := _COST.match(line):
            if not is_call:
                costs[caller, ""] += int(found[1])
            elif called != caller:
                costs[caller, called] += int(found[1])
            called, is_call = caller, False
    return costs


def _dump(work: Path, pid: int) -> Path:
    """The instructions since the last one."""
    before = set(work.glob(f"callgrind.{pid}.*"))
    _order("--dump", pid)
    [dump] = set(work.glob(f"callgrind.{pid}.*")) - before
    return dump


def _order(option: str, pid: int) -> None:
    subprocess.run(
        ["callgrind_control", option, str(pid)], check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT
    )
