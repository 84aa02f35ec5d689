"""Whole commands: what goes to stdout, what to stderr, and the exit code.

Those whose streams are the point run as processes, the others here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unit.cli.reports import make_device, make_status
from usbipd import __version__
from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.errors import UsbipdError
from usbipd.ipc.channel import Request
from usbipd.ipc.messages import (
    BindParameters,
    BindResult,
    Command,
    ListResult,
    Message,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)

Extension = Callable[..., AbstractContextManager[None]]

PROGRAM = "import sys; from usbipd.cli.{} import main; sys.exit(main(sys.argv[1:]))"
USBIPD = [sys.executable, "-c", PROGRAM.format("main")]
USBIPD_EXT = [sys.executable, "-c", PROGRAM.format("ext")]


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("usbipd", ARGUMENT...)` in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(name: str, *arguments: str) -> Done:
        code = {"usbipd": usbipd.main, "usbipd-ext": ext.main}[name](arguments)
        return Done(code, *capsys.readouterr())

    return call


def spawn(command: list[str], stdout: object = subprocess.PIPE, **variables: str) -> Done:
    """Run `command` as a process with its output in `stdout`."""
    done = subprocess.run(
        command,
        check=False,
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "COLUMNS": "80"} | variables,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def answer(request: Request) -> Message | UsbipdError:
    """An extension with two devices, of which 1-1 cannot be had."""
    devices = [make_device("1-1", product="Maus 日本"), make_device("3-1")]
    match request.parameters:
        case BindParameters(busid="1-1"):
            return UsbipdError("1-1 is mounted on /mnt", code="mounted", advice="unmount /mnt first")
        case BindParameters():
            return BindResult(device=devices[1])
        case UnbindParameters(busid=busid):
            return UnbindResult(busids=["1-1", "3-1"] if busid is None else [busid])
    if request.command is Command.LIST:
        return ListResult(devices=devices)
    return make_status(devices)


def test_list(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "list", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["BUSID", "1-1", "3-1"]


def test_list_of_nothing(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(lambda _request: ListResult(devices=[])):
        done = run("usbipd", "list", "--socket", str(socket_path))
    assert (done.code, done.stdout) == (0, "")
    assert "No USB device" in done.stderr


def test_bind(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "--socket", str(socket_path), "bind", "--busid", "3-1")
    assert (done.code, done.stdout, done.stderr) == (0, "", "3-1 is shared: SanDisk Ultra\n")


def test_bind_json(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "3-1", "--json", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["device"]["busid"] == "3-1"


def test_a_refused_bind(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "1-1", "--socket", str(socket_path))
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "usbipd: 1-1 is mounted on /mnt\nhint: unmount /mnt first\n"


def test_a_refused_bind_in_json(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "1-1", "--json", "--socket", str(socket_path))
    assert done.code == 1
    assert json.loads(done.stdout) == {
        "format": 1,
        "error": {"code": "mounted", "message": "1-1 is mounted on /mnt", "advice": "unmount /mnt first"},
    }


@pytest.mark.parametrize(("which", "gone"), [(["--busid", "3-1"], "3-1"), (["--all"], "1-1, 3-1")])
def test_unbind(run: Run, extension: Extension, socket_path: Path, which: list[str], gone: str) -> None:
    with extension(answer):
        done = run("usbipd", "unbind", *which, "--socket", str(socket_path))
    assert (done.code, done.stdout, done.stderr) == (0, "", f"no longer shared: {gone}\n")


def test_unbind_of_nothing(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(lambda _request: UnbindResult(busids=[])):
        done = run("usbipd", "unbind", "--all", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "No device was shared.\n")


def test_status_with_and_without_processes(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        short = run("usbipd", "status", "--socket", str(socket_path))
    with extension(answer):
        long = run("usbipd-ext", "--status", "--socket", str(socket_path))
    assert short.code == long.code == 0
    assert long.stdout.startswith(short.stdout)
    assert "PROCESS" in long.stdout.removeprefix(short.stdout)


def test_both_statuses_are_one_document(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        one = run("usbipd", "status", "--json", "--socket", str(socket_path))
    with extension(answer):
        other = run("usbipd-ext", "--status", "--json", "--socket", str(socket_path))
    assert one.stdout == other.stdout
    assert json.loads(one.stdout)["status"].keys() == set(StatusResult.__struct_fields__)


@pytest.mark.parametrize("command", [["usbipd", "status"], ["usbipd-ext", "--status"]])
def test_no_extension(run: Run, command: list[str], tmp_path: Path) -> None:
    done = run(*command, "--json", "--socket", str(tmp_path / "none"))
    assert done.code == 3
    assert "not running" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "not-running"


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext"])
def test_wrong_usage_is_two_lines_and_2(run: Run, name: str) -> None:
    done = run(name, "--frob")
    assert (done.code, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{name}: ")
    assert second.startswith("hint: ")
    assert f"{name} --help" in second


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext"])
def test_version_and_help(run: Run, name: str) -> None:
    assert run(name, "--version") == (0, f"{name} {__version__}\n", "")
    assert run(name, "--help").stdout.startswith(f"usage: {name} ")


def test_a_terminal_without_the_characters(extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = spawn([*USBIPD, "list", "--socket", str(socket_path)], PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "Maus ??" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(extension: Extension, socket_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:  # noqa: PTH123 - a descriptor
        with extension(answer):
            listed = spawn([*USBIPD, "list", "--socket", str(socket_path)], pipe)
        helped = spawn([*USBIPD, "list", "--help"], pipe)
    assert (listed.code, listed.stderr) == (141, "")
    assert (helped.code, helped.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["status", "--json", "--socket", "/nonexistent"]])
def test_a_full_disk_is_an_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = spawn([*USBIPD, *arguments], full)
    assert done.code != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("usbipd: ")


def test_stdout_may_be_closed(extension: Extension, socket_path: Path) -> None:
    script = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *USBIPD]
    with extension(answer):
        done = spawn([*script, "list", "--socket", str(socket_path)])
    assert (done.code, done.stderr) == (0, "")


def test_asking_for_the_status_is_light(extension: Extension, socket_path: Path) -> None:
    """What `usbipd-ext --status` imports decides how long a person waits for it."""
    script = (
        "import sys; from usbipd.cli.ext import main; code = main(sys.argv[1:])\n"
        "heavy = {'asyncio', 'ctypes', 'usb1', 'logging', 'tomllib', 'usbipd.extension.process'}\n"
        "sys.exit(code or repr(heavy & sys.modules.keys()))"
    )
    with extension(answer):
        done = spawn([sys.executable, "-c", script, "--status", "--socket", str(socket_path)])
    assert done.stderr == "set()\n"
