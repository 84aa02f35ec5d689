"""The compiled view of the IORegistry on fake_iokit.c, and Python's hand on the fake.

`load` compiles cython/iokit.pyx together with the fake, once, into a directory that goes with the tests.
"""

import atexit
import ctypes
import functools
import importlib.util
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import usbipd

ROOT = Path(__file__).parents[2]

needs_fake = pytest.mark.skipif(sys.platform == "darwin", reason="IOKit itself would answer")


class FakeRegistry:
    """What a test makes of the IORegistry.  Entries are numbers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._fake = library
        self._fake.fake_power.restype = ctypes.c_ssize_t
        self._fake.fake_begin()

    def add(self, parent: int | None, class_name: str, name: str | bytes = "", **properties: object) -> int:
        """A new entry below `parent`.

        In the name of a property `_` stands for a space; None is a value that is no number and no string.
        """
        entry: int = self._fake.fake_add(
            -1 if parent is None else parent, class_name.encode(), _bytes(name or class_name)
        )
        for key, value in properties.items():
            self._set(entry, key.replace("_", " ").encode(), value)
        return entry

    def _set(self, entry: int, key: bytes, value: object) -> None:
        if isinstance(value, int):
            self._fake.fake_number(entry, key, ctypes.c_int64(value))
        elif isinstance(value, str | bytes):
            self._fake.fake_text(entry, key, _bytes(value))
        else:
            self._fake.fake_other(entry, key)

    def add_device(self, location: int, name: str | bytes = "Device", **properties: object) -> int:
        return self.add(None, "IOUSBHostDevice", name, locationID=location, **properties)

    def add_interface(self, device: int, number: int, **properties: object) -> int:
        return self.add(device, "IOUSBHostInterface", bInterfaceNumber=number, **properties)

    def add_disk(self, device: int, name: str) -> int:
        """The only interface of a stick, down to its medium, which is disk `name`."""
        interface = self.add_interface(device, 0)
        driver = self.add(interface, "IOUSBMassStorageDriver")
        return self.add(driver, "IOMedia", "SanDisk Media", BSD_Name=name)

    def remove(self, entry: int) -> None:
        """The entry goes, with all below it."""
        self._fake.fake_remove(entry)

    def remove_before(self, step: int, entry: int) -> None:
        """The entry goes before the `step`-th object is asked of an iterator."""
        self._fake.fake_remove_before(step, entry)

    @property
    def steps(self) -> int:
        """How often an iterator was asked for an object."""
        return int(self._fake.fake_steps())

    def keep_changing(self) -> None:
        """No iterator over children stays valid."""
        self._fake.fake_restless(1)

    def power(self, message: int, number: int) -> int:
        """Power management asks or tells, on a thread of its own; which question was answered with yes."""
        return int(self._fake.fake_power(message, ctypes.c_ssize_t(number)))

    @property
    def power_left(self) -> int:
        """What a listener of power management has not given back."""
        return int(self._fake.fake_power_left())

    def fail(self, function: str, code: int, times: int = 1) -> None:
        """The next calls of the function fail."""
        self._fake.fake_fail(function.encode(), ctypes.c_int(code), times)

    def assert_balanced(self) -> None:
        """Each reference that was handed out has been released, once."""
        assert self._fake.fake_handed_out() > 0
        assert (self._fake.fake_held(), self._fake.fake_misuses()) == (0, 0)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


@functools.cache
def load() -> ctypes.CDLL:
    """Compiles and imports `usbipd._iokit` with the fake in it; the library to drive the fake by."""
    build = tempfile.TemporaryDirectory(prefix="usbipd-iokit-")
    atexit.register(build.cleanup)
    source = Path(build.name, "iokit.c")
    module = Path(build.name, f"_iokit{sysconfig.get_config_var('EXT_SUFFIX')}")
    cython = [
        sys.executable,
        "-m",
        "cython",
        "-3",
        "--module-name",
        "usbipd._iokit",
        "-I",
        ROOT / "cython",
        "-o",
        source,
    ]
    subprocess.run([*cython, ROOT / "cython/iokit.pyx"], check=True)
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    includes = [f"-I{ROOT / 'cython'}", f"-I{sysconfig.get_path('include')}"]
    fake = ROOT / "tests/fake_iokit/fake_iokit.c"
    subprocess.run([*compiler, "-shared", "-fPIC", *includes, source, fake, "-o", module], check=True)
    spec = importlib.util.spec_from_file_location("usbipd._iokit", module)
    assert spec is not None
    assert spec.loader is not None
    usbipd._iokit = importlib.util.module_from_spec(spec)
    sys.modules["usbipd._iokit"] = usbipd._iokit
    spec.loader.exec_module(usbipd._iokit)
    return ctypes.CDLL(str(module))
