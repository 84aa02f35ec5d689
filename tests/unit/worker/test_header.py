"""The sources of the pump against pump.pxd: their contents and their uses.  Reads them; runs nothing."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parents[3] / "cython"
HEADER = (HERE / "pump.pxd").read_text()
MAIN = (HERE / "pump.pyx").read_text()
INCLUDED = re.findall(r'^include "(\w+\.pxi)"', MAIN, re.MULTILINE)
CODE = {
    name: re.sub(r'^ *#.*|"""(?:.|\n)*?"""', "", (HERE / name).read_text(), flags=re.MULTILINE)
    for name in [*INCLUDED, "pump.pyx"]
}
FUNCTION = re.compile(r"^cdef (?!class |extern )[^\n(]*?\b(\w+)\(", re.MULTILINE)
"""The name in a definition."""
DEFINED = {name: set(FUNCTION.findall(code)) for name, code in CODE.items()}
BACKENDS = {
    r"\.device\.real\b": {"real.pxi"},
    r"\.device\.simulated\b": {"simulated.pxi"},
    r"\.queued\.": {"queued.pxi"},
}
"""The parts of an URB that are private, and their owners."""


def listed() -> dict[str, set[str]]:
    """By file, the functions that others call according to the header."""
    found: dict[str, set[str]] = {}
    file = ""
    for name, functions in re.findall(r"^#   (\w+\.pxi)? +(\w[\w, ]*)$", HEADER, re.MULTILINE):
        file = name or file
        found.setdefault(file, set()).update(re.findall(r"\w+", functions))
    return found


def test_all_parts_are_included() -> None:
    of_iokit = {path.name for path in HERE.glob("iokit*.pxi")}
    assert {path.name for path in HERE.glob("*.pxi")} - of_iokit == set(INCLUDED)


@pytest.mark.parametrize("file", CODE)
def test_a_function_is_named_after_its_file(file: str) -> None:
    concept = re.split(r"[._]", file)[0]
    assert {name for name in DEFINED[file] if not name.startswith(f"{concept}_")} == set()


def test_the_header_lists_the_calls_between_files() -> None:
    called = {
        file: {
            name
            for name in names
            if any(re.search(rf"\b{name}\b", code) for other, code in CODE.items() if other != file)
        }
        for file, names in DEFINED.items()
    }
    assert listed() == {file: names for file, names in called.items() if names}


@pytest.mark.parametrize("file", sorted(set(CODE) - {"linux_errno.pxi", "interface.pxi"}))
def test_types_and_constants_are_in_the_header(file: str) -> None:
    assert re.findall(r"^(?:cdef|ctypedef) (?:enum|struct|union)\b.*", CODE[file], re.MULTILINE) == []


@pytest.mark.parametrize("part", BACKENDS)
def test_only_a_backend_uses_its_part_of_an_urb(part: str) -> None:
    assert {file for file, code in CODE.items() if re.search(part, code)} == BACKENDS[part]
