"""What a process of a Mac sees: `as_mac/`."""

import json
import subprocess

import pytest

from tests.mac.machine import Machine


def said_by(mac: Machine, program: str, *, environment: dict[str, str] | None = None) -> object:
    """What `program`, an expression behind statements, is in the interpreter of this Mac."""
    *statements, expression = program.split("; ")
    code = "; ".join(["import json", *statements, f"print(json.dumps({expression}))"])
    done = subprocess.run(
        [mac.python, "-I", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "module", ["usbipd.privileges", "usbipd.confinement", "usbipd._claim", "usbipd._pump"], ids=str
)
def test_usbipd_sees_macos_and_everything_else_linux(mac: Machine, module: str) -> None:
    program = f"import sys; import {module} as it; [it.sys.platform, sys.platform]"
    assert said_by(mac, program) == ["darwin", "linux"]
    assert said_by(mac, program, environment={}) == ["darwin", "linux"], "as a child of the extension"


def test_values_that_depend_on_the_platform_when_a_module_is_imported(mac: Machine) -> None:
    program = "from usbipd import privileges; [privileges.DEFAULT_USER, sorted(privileges.GROUPS_OF_ROOT)]"
    assert said_by(mac, program) == ["_usbipd", [0, 80]]


def test_modules_that_a_compiled_module_imports_first(mac: Machine) -> None:
    """The standard library is imported for Linux, also while a module is being imported for macOS."""
    program = (
        "import selectors; import usbipd._pump; import usbipd._claim; import select; "
        "[hasattr(select, 'epoll'), selectors.DefaultSelector.__name__]"
    )
    assert said_by(mac, program) == [True, "EpollSelector"]


def test_libusb_is_the_one_of_the_software_mac(mac: Machine) -> None:
    program = (
        "import usb1; import usbipd._claim; {l.split()[-1] for l in open('/proc/self/maps') if 'libusb' in l}"
    )
    program = program.replace("{l.", "sorted({l.").replace("l}", "l})")
    assert said_by(mac, program) == [str(mac.library)]


def test_groups_come_from_the_directory(mac: Machine) -> None:
    """Whatever the kernel has: that is why `privileges.drop` does not ask Python."""
    program = "from usbipd import privileges; import os; os.setgroups([]); privileges.os.getgroups()"
    groups = said_by(mac, program)
    assert isinstance(groups, list)
    assert 12 in groups
