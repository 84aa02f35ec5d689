"""The seccomp filter: its numbers match the kernel's.  test_confinement.py shows its effect."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbipd import seccomp

HEADERS = (
    (0, Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")),
    (1, Path("/usr/include/asm-generic/unistd.h")),
)


def calls() -> Iterator[tuple[str, tuple[int, int | None]]]:
    """The name and the numbers of each call in the filter."""
    for table in (
        *(seccomp._SOCKETS, seccomp._ACCEPT, seccomp._FILES, seccomp._PATHS, seccomp._SHARED),
        *(seccomp._PROCESSES, seccomp._PROGRAMS, seccomp._KERNEL, seccomp._OF_ITSELF, seccomp._COMMANDS),
        *(seccomp._FLAGS_THIRD, seccomp._FLAGS_FOURTH, {"seccomp": seccomp._SECCOMP}),
    ):
        yield from table.items()


@pytest.mark.parametrize(("column", "header"), HEADERS, ids=["x86_64", "aarch64"])
def test_the_numbers_are_those_of_the_kernel(column: int, header: Path) -> None:
    if not header.exists():
        pytest.skip(f"no {header}: the package linux-libc-dev has it")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    known: dict[str, int | None] = {call: int(number) for call, number in defined}
    # Calls of kernels newer than the headers; their numbers are the same on all architectures.
    ours = {call: pair[column] for call, pair in calls() if call in known or pair[0] != pair[1]}
    assert ours == {call: known.get(call) for call in ours}
    assert len(dict(calls())) - len(ours) < 5


def test_every_jump_of_the_filter_fits_in_8_bits() -> None:
    """They have 8 bits."""
    for column, audit in seccomp._ARCHITECTURES.values():
        code = seccomp._program(column, audit, 1 << 22, accepts=False)
        assert len(code) // seccomp._INSTRUCTION.size < 256
