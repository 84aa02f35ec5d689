"""Allowed imports between modules of usbipd: none from another process, and no cycle.

Imports inside functions and for type checkers count too.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROCESSES = ("usbipd.cli", "usbipd.extension", "usbipd.server", "usbipd.worker")
"""The packages whose code runs in one kind of process.  Code that several need is outside them."""


def name_of(path: Path) -> str:
    """The module name of the file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, modules: frozenset[str]) -> Iterator[str]:
    """Those of `modules` that the program `tree` imports in any way."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for each in node.names:
                name = f"{node.module}.{each.name}"
                yield from modules & {name if name in modules else node.module}


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    """The imports of each module, from the texts of all."""
    modules = frozenset(files)
    return {name: set(imports(ast.parse(text), modules)) for name, text in files.items()}


FILES = list((ROOT / "usbipd").rglob("*.py"))
USBIPD = graph({name_of(path): path.read_text() for path in FILES})


def process_of(module: str) -> str | None:
    """The package of a process with this module; None if it is shared."""
    return next((each for each in PROCESSES if f"{module}.".startswith(f"{each}.")), None)


def crossings(imported: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of a process's module from elsewhere; only `__main__` may have them."""
    return [
        (module, other)
        for module, others in sorted(imported.items())
        for other in sorted(others)
        if process_of(other) not in (None, process_of(module)) and module != "usbipd.__main__"
    ]


def circle(imported: dict[str, set[str]]) -> list[str]:
    """A cycle of modules, the first again as the last; empty if none exists."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_is_absolute() -> None:
    """The other tests read only absolute ones."""
    assert [path for path in FILES if re.search(r"^\s*from \.", path.read_text(), re.MULTILINE)] == []


def test_no_process_imports_from_another() -> None:
    assert {process_of(module) for module in USBIPD} == {None, *PROCESSES}
    assert crossings(USBIPD) == []


def test_no_modules_import_each_other() -> None:
    assert circle(USBIPD) == []


@pytest.mark.parametrize(
    "text",
    [
        "from usbipd.worker.process import main",
        "from usbipd.worker import process",
        "import usbipd.worker.process as process",
        "def late():\n    from usbipd.worker.process import main",
        "if TYPE_CHECKING:\n    from usbipd.worker.process import main",
    ],
)
def test_new_imports_are_found(text: str) -> None:
    files = {"usbipd.cli.bind": text, "usbipd.worker.process": "import usbipd.cli.bind", "usbipd.worker": ""}
    files["usbipd.__main__"] = "from usbipd.cli import bind"
    found = graph(files)
    assert crossings(found) == [
        ("usbipd.cli.bind", "usbipd.worker.process"),
        ("usbipd.worker.process", "usbipd.cli.bind"),
    ]
    assert set(circle(found)) == {"usbipd.cli.bind", "usbipd.worker.process"}
