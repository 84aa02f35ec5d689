"""The entry point: the role of a process, by its name and its first argument."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import EXECUTABLE

ENTER = "import sys; sys.argv[0] = {name!r}; from usbipd.__main__ import main; sys.exit(main())"


def enter(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A process started under that name."""
    command = [sys.executable, "-c", ENTER.format(name=name), *arguments]
    if EXECUTABLE is not None:
        command = [name, *arguments]
    return subprocess.run(command, executable=EXECUTABLE, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "program"),
    [("usbipd", "usbipd"), ("/usr/bin/usbipd-ext", "usbipd-ext"), ("/x/__main__.py", "usbipd")],
)
def test_the_name_decides(name: str, program: str) -> None:
    done = enter(name, "--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == program


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext"])
@pytest.mark.parametrize("role", ["@server", "@worker"])
def test_only_the_extension_can_start_children(name: str, role: str) -> None:
    done = enter(name, role)
    assert done.returncode == 2
    assert done.stderr == f"usbipd: only usbipd-ext can start {role}\n"


def test_closed_standard_descriptors_become_dev_null(tmp_path: Path) -> None:
    """Before all imports of a role: with libffi 3.5, ctypes keeps a file open."""
    program = (
        "import os, sys; sys.argv = ['usbipd', 'list', '--socket', '/no/such.sock']\n"
        "from usbipd.__main__ import main; main(); import ctypes\n"
        "found = [os.stat(n).st_rdev == os.stat(os.devnull).st_rdev for n in range(3)]\n"
        "found += [os.get_inheritable(n) for n in range(3)]\n"
        f"open({str(tmp_path / 'found')!r}, 'w').write(str(all(found)))"
    )
    closed = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} <&- >&- 2>&-"
    subprocess.run(["/bin/sh", "-c", closed], check=True)
    assert (tmp_path / "found").read_text() == "True"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "usbipd", "--version"], capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[0] == "usbipd"


def test_a_server_does_not_import_what_it_does_not_need() -> None:
    """The process that reads the network loads neither libusb nor simulated devices nor the pump."""
    names = "{name for name in sys.modules if name.split('.')[0] == 'usb1' or name.startswith(unwanted)}"
    program = (
        "import sys, usbipd.server.process\n"
        "unwanted = ('usbipd._', 'usbipd.simulated.', 'usbipd.extension', 'usbipd.worker', 'usbipd.cli')\n"
        f"print(*{names} - {{'usbipd.simulated.spec'}})"  # part of a message
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_ctrl_c_during_the_import_of_a_role() -> None:
    """It exits as later: without a traceback."""
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'usbipd.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from usbipd.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
