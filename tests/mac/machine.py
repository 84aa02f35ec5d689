"""A Mac for whole daemons: a kernel, an interpreter in which usbipd runs as on a Mac, its programs.

Runs in pytest; `as_mac/` runs inside.
"""

import asyncio
import json
import stat
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tests.mac.build import LIBRARY
from tests.mac.mac import Device, Mac, OwnMac
from usbipd.extension.store import Store

ROOT: Final = Path(__file__).parents[2]
ENTER: Final = """\
import sys
from usbipd.__main__ import main
sys.exit(main())
"""
PROGRAMS: Final = Path(__file__).parent / "as_mac" / "programs"
PYTHONS: Final = (
    Path(sys._base_executable),  # type: ignore[attr-defined]
    Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"),
)
"""The first that all users can read is used: an ordinary user may run a daemon."""
BUS: Final = 0x14
"""The bus of all devices here: the upper 8 bits of a locationID."""
DRIVERS: Final = {0: "hid", 1: "audio"}
"""macOS's drivers for a device, by bInterfaceNumber."""


def for_all_users(path: Path) -> bool:
    """Whether all users can read `path`."""
    path = path.resolve()
    return path.exists() and all(each.stat().st_mode & stat.S_IXOTH for each in path.parents)


class Machine:
    """One Mac.  Its daemons stop before its kernel."""

    def __init__(self, kernel: OwnMac, libusb: Path) -> None:
        """`libusb` is the directory with the library and usbipd._iokit, as made by `build`."""
        self.kernel = kernel
        self.directory = kernel.directory
        self.state = self.directory / "daemon" / "state"
        """Bindings and history of its daemons."""
        self.library = libusb / LIBRARY
        self._make_interpreter()
        facts = {"kernel": str(kernel.path), "library": str(self.library), "modules": str(libusb)}
        (self.directory / "facts.json").write_text(json.dumps(facts))
        (self.directory / "programs").symlink_to(PROGRAMS)
        self.mount({})

    def _make_interpreter(self) -> None:
        """Creates an environment like venv's, with the packages of this process."""
        packages = self.directory / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        packages.mkdir(parents=True)
        self.programs = self.directory / "bin"
        """The directory of `usbipd` and `usbipd-ext`."""
        self.programs.mkdir()
        self.python = self.programs / "python"
        base = next((each for each in PYTHONS if for_all_users(each)), PYTHONS[0])
        self.python.symlink_to(base)
        (self.directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
        (packages / "mac.pth").write_text(
            f"{ROOT}\n{sysconfig.get_path('purelib')}\nimport tests.mac.as_mac.loader\n"
        )
        for name in ("usbipd", "usbipd-ext"):
            program = self.programs / name
            program.write_text(f"#!{self.python}\n{ENTER}")
            program.chmod(0o755)

    def program(self, name: str, user: int | None = None) -> list[str]:
        """The command line of `usbipd` or `usbipd-ext` on this Mac, run as the user with this id."""
        program = str(self.programs / name)
        if user is None:
            return [program]
        become = f"import os, sys; os.setgroups([]); os.setgid({user}); os.setuid({user})"
        return [sys.executable, "-c", f"{become}; os.execv({program!r}, [{program!r}, *sys.argv[1:]])"]

    def plug(self, port: int, *, drivers: bool = True) -> "Gadget":
        """Plugs a device into a port of the bus."""
        return Gadget(self.kernel, port, DRIVERS if drivers else {})

    def mount(self, table: dict[str, str]) -> None:
        """Sets the mount table: mount points by their source."""
        (self.directory / "mounts").write_text(json.dumps(list(table.items())))

    def mounted(self) -> list[str]:
        """The mount points."""
        return [point for _source, point in json.loads((self.directory / "mounts").read_text())]

    def load_launchd_job(self) -> None:
        """Installs and loads the extension's job."""
        (self.directory / "org.usbipd.extension.plist").write_text("")
        (self.directory / "loaded").write_text("")

    def unload_launchd_job(self) -> None:
        """Unloads it, as a user does in System Settings."""
        (self.directory / "loaded").unlink()

    def forget_bindings(self) -> None:
        """Removes all bindings while no daemon runs."""
        asyncio.run(_remove_bindings(self.state))


class Gadget:
    """A loopback device, which can be moved between ports.

    Endpoints 0x01 and 0x81 are a bulk loopback, 0x02 and 0x82 an interrupt one; in setting 1 of interface 0,
    0x03 and 0x83 an isochronous one (kernel/packets.py).
    """

    def __init__(self, mac: Mac, port: int, drivers: dict[int, str]) -> None:
        self._mac = mac
        self._drivers = drivers
        self.serial = f"serial-{port}"
        self.device: Device
        self.plug(port)

    def plug(self, port: int) -> None:
        """Plug it into this port, after an unplug."""
        self.busid = f"{BUS}-{port}"
        self.device = self._mac.plug(
            "loopback",
            location=BUS << 24 | port << 20,
            port=port,
            drivers=self._drivers,
            strings=("Software", "Loopback", self.serial),
        )

    @property
    def has_all_drivers(self) -> bool:
        """Whether the device is present with all its macOS drivers."""
        state = self._mac.call("state", self.device.number)
        return bool(state["present"]) and sorted(state["drivers"]) == sorted(self._drivers)


async def _remove_bindings(state: Path) -> None:
    store = await Store.open(state)
    await store.remove_bindings([binding.rule for binding in await store.bindings()])
    await store.close()
