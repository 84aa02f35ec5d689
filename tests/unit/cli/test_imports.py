"""The modules that a command loads, which its user waits for."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.unit.cli.reports import make_device, make_status
from usbipd.cli.main import SUBCOMMANDS
from usbipd.ipc.control_messages import DetachResult, ListResult, ReleaseResult
from usbipd.ipc.message import Message

BY_ITSELF: set[str] = {"dataclasses"} if sys.version_info >= (3, 14) else set()
"""Always loaded by argparse and traceback, through _colorize."""

HEAVY = (
    *("asyncio", "ctypes", "dataclasses", "importlib.metadata", "logging", "pathlib", "psutil"),
    *("signal", "subprocess", "tempfile", "tomllib", "usb1", "usbipd.config", "usbipd.extension"),
    *("usbipd.ipc.children", "usbipd.log", "usbipd.paths", "usbipd.server", "usbipd.simulated"),
    *("usbipd.worker",),
)
"""Needed by no command that queries the extension.  inspect is not in the list: msgspec loads it if
typing_extensions is installed."""

StartExtension = Callable[..., AbstractContextManager[None]]


def loaded(program: str) -> set[str]:
    """The modules of a new process that ran `program`, except those that site loads."""
    start = f"import sys; sys.path[:] = {sys.path!r}\n"
    end = "\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    command = [sys.executable, "-I", "-S", "-c", start + program + end]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


def of(modules: set[str], packages: Iterable[str]) -> set[str]:
    """The `modules` that are in one of `packages`."""
    ours = modules - BY_ITSELF
    return {module for module in ours for each in packages if f"{module}.".startswith(f"{each}.")}


@pytest.mark.parametrize(
    ("argv", "answer"),
    [
        (["usbipd-ext", "--status"], make_status([make_device()])),
        (["usbipd-ext", "--status", "--json"], make_status([make_device()])),
        (["usbipd", "status"], make_status([make_device()])),
        (["usbipd", "list"], ListResult(devices=[make_device()], bindings=[])),
        (["usbipd", "detach", "--busid", "1-1"], DetachResult(client="192.0.2.7:1")),
        (["usbipd", "release", "1-1"], ReleaseResult(drivers=[])),
    ],
    ids=["ext-status", "ext-status-json", "status", "list", "detach", "release"],
)
def test_command_loads_no_heavy_module_and_no_other_command(
    extension: StartExtension, socket_path: Path, argv: list[str], answer: Message
) -> None:
    full = [*argv, "--socket", str(socket_path)]
    with extension(lambda _request: answer):
        modules = loaded(f"sys.argv = {full!r}\nfrom usbipd.__main__ import main\nassert main() == 0")
    assert not of(modules, HEAVY)
    command = argv[1].removeprefix("--")
    assert f"usbipd.cli.{command}" in modules
    assert not of(modules, [f"usbipd.cli.{each}" for each in SUBCOMMANDS if each != command])


def test_command_collects_no_garbage_at_exit(extension: StartExtension, socket_path: Path) -> None:
    """It would take 13 % of the CPU time of a short command."""
    program = (
        "import gc, sys\n"
        f"sys.argv = ['usbipd-ext', '--status', '--socket', {str(socket_path)!r}]\n"
        "from usbipd.__main__ import main\n"
        "assert main() == 0\n"
        "assert len(gc.get_objects()) < gc.get_freeze_count() // 10"
    )
    with extension(lambda _request: make_status([make_device()] * 8)):
        loaded(program)


def test_ordinary_user_loads_no_heavy_module() -> None:
    program = (
        "import os\nos.geteuid = lambda: 1000\nos.environ.pop('XDG_RUNTIME_DIR', None)\n"
        "from usbipd.control_socket import usual_control_socket\nusual_control_socket()"
    )
    assert not of(loaded(program), HEAVY)


def test_help_loads_no_command() -> None:
    modules = loaded("from usbipd.cli.main import main\nassert main(['--help']) == 0")
    assert not of(modules, ["msgspec", *(f"usbipd.cli.{each}" for each in SUBCOMMANDS)])


def test_the_worker_of_a_real_device_loads_no_simulated_one() -> None:
    modules = loaded("import usbipd.worker.process")
    assert "usbipd._pump" in modules
    assert not of(modules, ["asyncio", "dataclasses", "pathlib", "usb1", "usbipd.simulated.catalog"])
