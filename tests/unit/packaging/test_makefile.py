"""The Makefile, run by make: values of its variables, and a broken .venv.

Each test has a separate tree of links to the parts of this one.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import pytest

from tests.unit.packaging.built import BUILT

ROOT: Final = Path(__file__).parents[3]
PYTHON: Final = os.path.realpath(sys.executable)
PARTS: Final = (
    *("LICENSE", "Makefile", "README.md", "cython", "packaging", "pyproject.toml", "setup.py"),
    *("tests", "usbipd"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    for name in PARTS:
        (directory / name).symlink_to(ROOT / name)
    return directory


def make(tree: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    variables = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return subprocess.run(
        ["make", *arguments], cwd=tree, env=variables, capture_output=True, text=True, check=False
    )


def make_alone(tree: Path, target: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the recipe of `target`, without its prerequisites."""
    text = (ROOT / "Makefile").read_text()
    (tree / "Makefile").unlink()
    (tree / "Makefile").write_text(re.sub(rf"(?m)^({target}:) [a-z ]+ ##", r"\1 ##", text))
    return make(tree, target, *arguments)


# ---- a .venv -----------------------------------------------------------------------------------------------


def incomplete(tree: Path) -> None:
    """python -m venv was interrupted before it had pip."""
    venv.create(tree / ".venv", symlinks=True)
    (tree / ".venv/bin/activate").unlink()


def without_its_python(tree: Path) -> None:
    """A system upgrade has removed the Python that it was created with."""
    venv.create(tree / ".venv", symlinks=True)
    for path in (tree / ".venv/bin").glob("python*"):
        path.unlink()
    (tree / ".venv/bin/python").symlink_to("/usr/bin/python3.0")


def of_another_version(tree: Path) -> None:
    """The system's python3 is now a newer version, which does not find the packages."""
    venv.create(tree / ".venv", symlinks=True)
    [packages] = (tree / ".venv/lib").iterdir()
    packages.rename(tree / ".venv/lib/python3.0")


def moved(tree: Path) -> None:
    """Its scripts and the editable install name the old place."""
    elsewhere = tree.with_name("elsewhere")
    venv.create(elsewhere, symlinks=True)
    elsewhere.rename(tree / ".venv")


@pytest.mark.slow
@pytest.mark.parametrize("broken", [incomplete, without_its_python, of_another_version, moved])
def test_a_broken_environment_is_recreated(tree: Path, broken: object) -> None:
    assert callable(broken)
    broken(tree)
    (tree / ".venv/.installed").touch()
    (tree / ".venv/left").touch()
    assert "pip install" in make(tree, "-n", "build").stdout
    made = make(tree, "venv", f"PYTHON={PYTHON}")
    assert made.returncode == 0, made.stderr
    assert "recreating it" in made.stdout
    assert not (tree / ".venv/left").exists()
    subprocess.run([tree / ".venv/bin/pip", "--version"], check=True, capture_output=True)
    (tree / ".venv/.installed").touch()
    for arguments in (("venv",), ("build",)):
        assert "Nothing to be done" in make(tree, *arguments).stdout


# ---- values of variables -----------------------------------------------------------------------------------


@pytest.fixture
def built(tree: Path) -> Path:
    """A tree in which `make binary man completions` has run."""
    for directory in ("dist", "build/man", "build/completions"):
        (tree / directory).mkdir(parents=True)
        for name in (*BUILT, "usbipd.cdx.json"):
            (tree / directory / name).write_text(f"this is {name}\n")
    (tree / ".venv").symlink_to(sys.prefix)
    return tree


@pytest.mark.parametrize(
    "value",
    ["root", "./sub/../root", "it's", "two words", "'; touch injected; '", "`touch injected`", '"', "a\nb"],
)
def test_destdir_may_contain_any_characters(built: Path, value: str) -> None:
    installed = make(built, "install", f"DESTDIR={value}")
    assert (installed.returncode, installed.stderr) == (0, "")
    assert (built / value / "usr/local/bin/usbipd").read_text() == "this is usbipd\n"
    (built / ".venv").unlink()
    removed = make(built, "uninstall", f"DESTDIR={value}", f"PYTHON={PYTHON}")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert not [path for path in (built / value).rglob("*") if path.is_file()]
    assert not (built / "injected").exists()


@pytest.mark.parametrize("value", ["it's", "usr", "/two words", "/usr; touch injected"])
def test_an_invalid_prefix(built: Path, value: str) -> None:
    done = make(built, "install", "DESTDIR=root", f"PREFIX={value}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"install: PREFIX={value}: an absolute path of letters")
    assert not (built / "root").exists()
    assert not (built / "injected").exists()


def test_install_before_a_build(tree: Path) -> None:
    done = make(tree, "install", "DESTDIR=root")
    assert done.returncode == 2
    assert done.stderr.startswith("first run: make binary man completions\n")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("perl", "it is not Python"),
        ("true", "it is not Python"),
        ("/no/such", "no such program"),
        ("it's", "no such program"),
    ],
)
@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not installed")
def test_a_program_that_is_not_python(tree: Path, value: str, why: str) -> None:
    done = make(tree, "build", f"PYTHON={value}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"PYTHON={value}: {why}.  usbipd needs Python 3.11 or newer.")


def test_a_python_that_is_too_old(tree: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho python3.9\n")
    old.chmod(0o755)
    done = make(tree, "build", f"PYTHON={old}")
    assert done.stderr.startswith(f"PYTHON={old}: it is python3.9.  usbipd needs Python 3.11 or newer.")


@pytest.mark.slow
def test_a_mac_with_apples_python_alone(tree: Path, tmp_path: Path) -> None:
    """It is 3.9.  Homebrew installs a newer one, which is used immediately."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in ("/bin", "/usr/bin"):
        for path in Path(directory).iterdir():
            if not path.name.startswith("python") and not (programs / path.name).is_symlink():
                (programs / path.name).symlink_to(path)
    fakes = {
        "uname": "echo Darwin",
        "python3": 'case "$*" in *sys.exit*) exit 1 ;; -c*) echo python3.9 ;; *) exit 3 ;; esac',
        "brew": f'echo "$*" >>"{tmp_path}/calls"; ln -s "{PYTHON}" "{programs}/python3.11"',
    }
    for name, script in fakes.items():
        (programs / name).unlink(missing_ok=True)
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["make", "venv"],
        cwd=tree,
        env={"HOME": str(tmp_path), "PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "python@3.11" in (tmp_path / "calls").read_text().split()
    assert os.path.realpath(tree / ".venv/bin/python") == PYTHON


def test_locked_names_a_file(tree: Path) -> None:
    done = make(tree, "build", "LOCKED=packaging/lock.txt")
    assert done.returncode == 2
    assert "LOCKED=packaging/lock.txt does not exist; try packaging/locked.txt" in done.stderr


@pytest.mark.parametrize("name", ["FUZZ_SECONDS", "FUZZ_EXAMPLES"])
def test_fuzz_settings_are_numbers(built: Path, name: str) -> None:
    done = make_alone(built, "fuzz", f"{name}=5m")
    assert done.returncode == 2
    assert f"{name}=5m" in done.stderr


@pytest.mark.parametrize("name", ["LISTEN", "SIMULATE"])
@pytest.mark.parametrize("value", ["it's", "'; touch injected; '", "two words"])
def test_run_passes_its_variables_to_the_daemon(built: Path, name: str, value: str) -> None:
    (built / "packaging").unlink()
    (built / "packaging").mkdir()
    (built / "packaging/foreground.py").write_text("import sys; print(sys.argv)\n")
    assert repr(value) in make_alone(built, "run", f"{name}={value}").stdout
    assert not (built / "injected").exists()
