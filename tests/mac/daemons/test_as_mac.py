"""The view of a process of a Mac: `as_mac/`."""

import json
import subprocess

import pytest

from tests.mac.machine import Machine


def output_of(mac: Machine, program: str, *, environment: dict[str, str] | None = None) -> object:
    """The value of `program`, statements and an expression, in the interpreter of this Mac."""
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
def test_only_usbipd_sees_macos(mac: Machine, module: str) -> None:
    program = f"import sys; import {module} as it; [it.sys.platform, sys.platform]"
    assert output_of(mac, program) == ["darwin", "linux"]
    assert output_of(mac, program, environment={}) == ["darwin", "linux"], "as a child of the extension"


def test_values_set_at_import_by_platform(mac: Machine) -> None:
    program = "from usbipd import privileges; [privileges.DEFAULT_USER, sorted(privileges.GROUPS_OF_ROOT)]"
    assert output_of(mac, program) == ["_usbipd", [0, 80]]


def test_modules_first_imported_by_a_compiled_module(mac: Machine) -> None:
    """The standard library is imported for Linux, even during the import of a module for macOS."""
    program = (
        "import selectors; import usbipd._pump; import usbipd._claim; import select; "
        "[hasattr(select, 'epoll'), selectors.DefaultSelector.__name__]"
    )
    assert output_of(mac, program) == [True, "EpollSelector"]


def test_libusb_is_the_software_macs(mac: Machine) -> None:
    program = (
        "import usb1; import usbipd._claim; {l.split()[-1] for l in open('/proc/self/maps') if 'libusb' in l}"
    )
    program = program.replace("{l.", "sorted({l.").replace("l}", "l})")
    assert output_of(mac, program) == [str(mac.library)]


def test_groups_come_from_the_directory(mac: Machine) -> None:
    """Not from the kernel: therefore `privileges.drop` does not ask Python."""
    program = "from usbipd import privileges; import os; os.setgroups([]); privileges.os.getgroups()"
    groups = output_of(mac, program)
    assert isinstance(groups, list)
    assert 12 in groups
