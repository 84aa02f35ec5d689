"""The completions of `make completions` in bash, zsh and fish, with and without a daemon."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client import Client
from tests.integration.conftest import StartDaemon
from tests.integration.daemon import USBIPD, Daemon
from tests.integration.shells import SHELLS, Shell
from tests.unit.cli.reports import make_binding, make_device
from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.cli.documents import ListDocument, render
from usbipd.ipc.control_messages import DeviceState
from usbipd.simulated.catalog import NAMES

GENERATOR = Path(__file__).parents[2] / "packaging" / "completions.py"

StartShell = Callable[..., Shell]


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, written as `make completions` does."""
    directory = tmp_path_factory.mktemp("completions")
    subprocess.run([sys.executable, str(GENERATOR), str(directory)], check=True, timeout=60)
    assert sorted(path.name for path in directory.iterdir()) == ["_usbipd", "usbipd.bash", "usbipd.fish"]
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def start(
    request: pytest.FixtureRequest, completions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartShell]:
    """Starts the shell: `start()`, or `start(script)` with this sh script as the command `usbipd`."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (make test-deps)")
    started: list[Shell] = []

    def start_shell(script: str = f'exec {shlex.join(USBIPD)} "$@"') -> Shell:
        home = tmp_path_factory.mktemp(name)
        command = home / "bin" / "usbipd"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        path = f"{command.parent}:{os.environ['PATH']}"
        variables = {"HOME": str(home), "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": str(home)}
        started.append(SHELLS[name](completions, {**os.environ, **variables, "PATH": path}))
        return started[-1]

    yield start_shell
    for each in started:
        each.close()


@pytest.fixture(scope="module")
def shell(start: StartShell) -> Shell:
    """One of them for all tests of a module."""
    return start()


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Its long options."""
    return {name for action in parser._actions for name in action.option_strings if name.startswith("--")}


def test_verbs(shell: Shell) -> None:
    assert sorted(shell.complete("usbipd ")) == sorted(usbipd.SUBCOMMANDS)
    assert shell.complete("usbipd unb") == ["unbind"]
    assert shell.complete("usbipd x") == []
    assert sorted(shell.complete("usbipd help ")) == sorted(usbipd.SUBCOMMANDS)


@pytest.mark.parametrize("command", usbipd.SUBCOMMANDS)
def test_options_of_a_verb(command: str, shell: Shell) -> None:
    parser = argparse.ArgumentParser()
    usbipd.load(command).add_arguments(parser)
    assert set(shell.complete(f"usbipd {command} --")) == options_of(parser) | {"--socket"}


def test_options_of_the_daemon(shell: Shell) -> None:
    assert set(shell.complete("usbipd-ext --")) == options_of(ext.build_parser())
    assert set(shell.complete("usbipd-ext --run --li")) == {"--listen"}


def test_values_that_the_program_knows(shell: Shell) -> None:
    assert set(shell.complete("usbipd-ext --run --log-to ")) == {"stderr", "syslog"}
    assert set(shell.complete("usbipd-ext --run --log-level ")) == {"debug", "info", "warning", "error"}
    assert set(shell.complete("usbipd-ext --run --simulate ")) == set(NAMES)


def test_files(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    assert shell.complete(f"usbipd-ext --run --config {tmp_path}/mi") == [f"{tmp_path}/mine.toml"]


@pytest.mark.parametrize("option", ["list --remote", "bind --hardware-id", "history --limit"])
def test_values_without_completions(option: str, shell: Shell) -> None:
    assert shell.complete(f"usbipd {option} ") == []


def test_busids(shell: Shell, start_daemon: StartDaemon, tmp_path: Path) -> None:
    """bind takes any device, unbind a bound port, detach a device in use."""
    daemon: Daemon = start_daemon("keyboard,loopback,serial")
    keyboard, loopback, serial = (daemon.busid(name) for name in ("keyboard", "loopback", "serial"))
    assert daemon.usbipd("unbind", "--busid", keyboard).returncode == 0

    def complete(command: str, line: str = "usbipd {command} --socket {socket} --busid ") -> list[str]:
        return sorted(shell.complete(line.format(command=command, socket=daemon.socket)))

    assert complete("bind") == sorted([keyboard, loopback, serial])
    assert complete("unbind") == sorted([loopback, serial])
    assert complete("detach") == []
    without_option = "usbipd {command} --socket {socket} "
    assert complete("bind", without_option) == sorted([keyboard, loopback, serial])
    assert complete("unbind", without_option) == sorted([loopback, serial])
    assert complete("release", without_option) == sorted([keyboard, loopback, serial])
    assert complete("bind", f"usbipd {{command}} --socket {{socket}} {keyboard} {serial[:-1]}") != []
    trying = "usbipd {command} --socket {socket} --report - --try-claim "
    assert complete("doctor", trying) == sorted([keyboard, loopback, serial])
    with Client(daemon.host, daemon.port).import_device(loopback):
        assert complete("detach") == [loopback]
    assert complete("unbind", "usbipd --socket {socket} {command} --busid ") == sorted([loopback, serial])
    assert complete("unbind", "usbipd {command} --socket={socket} --busid ") == sorted([loopback, serial])
    assert complete("unbind", "usbipd {command} --socket {socket} --busid 9") == []

    odd = tmp_path / "it's (the) directory"
    odd.symlink_to(daemon.directory)
    for path in (f'"{odd}/control.sock"', re.sub(r"([ '()])", r"\\\1", f"{odd}/control.sock")):
        assert complete("unbind", f"usbipd {{command}} --socket {path} --busid ") == sorted(
            [loopback, serial]
        )
    assert complete("history", "usbipd {command} --socket {socket} --device ") == complete("bind")
    assert daemon.usbipd("bind", "--busid", keyboard).returncode == 0


def test_no_busid_without_a_daemon(shell: Shell, tmp_path: Path) -> None:
    assert shell.complete(f"usbipd bind --socket {tmp_path}/none --busid ") == []


def test_no_busid_of_a_daemon_that_is_stuck(shell: Shell, start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon("keyboard")
    extension = daemon.status()["pid"]  # not the launcher
    os.kill(extension, signal.SIGSTOP)
    try:
        assert shell.complete(f"usbipd bind --socket {daemon.socket} --busid ") == []
    finally:
        os.kill(extension, signal.SIGCONT)


ODD = [
    "",
    " ",
    "USB  Disk",
    "\t\n\r\x1b[31mred",
    "\"quoted\" and 'quoted'",
    "back\\slash\\",
    "$(touch PWNED) `touch PWNED` $HOME ${x:-y}",
    "* ? [a-z] {a,b} ~ ! # % & | ; < > ( )",
    '",\n      "state": "attached',
    '"busid": "9-9"',
    "1-9:1-9\t1-9",
    "Größe 日本 \N{RIGHT-TO-LEFT OVERRIDE}x",
    "-- --all",
    "x" * 126,
]


def test_names_can_be_anything(start: StartShell, tmp_path: Path) -> None:
    names = [name.replace("PWNED", str(tmp_path / "pwned")) for name in ODD]
    states = [DeviceState.NOT_SHARED, DeviceState.SHARED, DeviceState.ATTACHED, DeviceState.FAILED]
    devices = [
        make_device(f"1-{port}", product=name, manufacturer=name, serial=name, state=states[port % 4])
        for port, name in enumerate(names, 1)
    ]
    bindings = [
        make_binding(busid=f"2-{port}", product=name, devices=["9-9"]) for port, name in enumerate(names, 1)
    ]
    document = tmp_path / "list.json"
    document.write_text(
        render(ListDocument(devices=devices, bindings=[*bindings, make_binding(busid=None)], left_out=[]))
    )
    shell = start(f"[ $# = 4 ] && cat {document}")  # list --json --timeout 2
    ports = range(1, len(ODD) + 1)
    assert sorted(shell.complete("usbipd bind --busid ")) == sorted(f"1-{port}" for port in ports)
    assert sorted(shell.complete("usbipd unbind --busid ")) == sorted(f"2-{port}" for port in ports)
    attached = sorted(f"1-{port}" for port in ports if port % 4 == 2)
    assert sorted(shell.complete("usbipd detach --busid ")) == attached
    assert not (tmp_path / "pwned").exists()


def test_only_busids_are_offered(start: StartShell, tmp_path: Path) -> None:
    """Whatever the command prints, only busids get into the line."""
    document = tmp_path / "list.json"
    busids = ["$(ls)", "1-1 2-2", "a", "-1", "1-1;ls", "", "3-3"]
    document.write_text(
        render(ListDocument(devices=[make_device(busid) for busid in busids], bindings=[], left_out=[]))
    )
    assert start(f"cat {document}").complete("usbipd bind --busid ") == ["3-3"]
