"""A software Mac for a test: starts its kernel, plugs devices in, and queries it.  Runs in tests.

The kernel is a separate process, because libusb is called by threads that hold the GIL: a kernel on another
thread of the same process could not answer.
"""

import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final, Self, cast

from tests.mac.kernel.wire import HEADER, Call, frame

ROOT: Final = Path(__file__).parents[2]
LEAKS: Final = ROOT / "tests" / "sanitized" / "leaks_of_stock_libusb.txt"
VARIABLE: Final = "SOFTWARE_MAC"
"""The environment variable that names the kernel's socket."""


class Mac:
    """A connection to a kernel.  Methods not defined here are those of `Control` (kernel/control.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._reader = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def call(self, name: str, *positional: object, **named: object) -> Any:
        """Calls a method of `Control`, and returns or raises its result.  Any thread; one call at a time."""
        with self._lock:
            self._socket.sendall(frame(Call.CONTROL, pickle.dumps((name, positional, named)), 1))
            length, _, _, _ = HEADER.unpack(self._reader.read(HEADER.size))
            succeeded, result = pickle.loads(self._reader.read(length)[4:])
        if not succeeded:
            raise result
        return result

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def plug(
        self,
        kind: str = "scripted",
        *,
        location: int = 0x14200000,
        port: int = 2,
        drivers: dict[int, str] | None = None,
        hub: "Device | None" = None,
        **options: object,
    ) -> "Device":
        """Plugs in a device of a kind (kernel/shelf.py), and waits until it is enumerated.

        `location`: the locationID, whose upper 8 bits are the bus.  `drivers`: the drivers of its
        interfaces by bInterfaceNumber (kernel/drivers.py); empty: no driver matches.
        """
        number = self.call(
            "plug",
            kind,
            location=location,
            port=port,
            drivers=drivers,
            hub=hub.number if hub else None,
            **options,
        )
        return Device(self, number)

    def switch(self, **values: object) -> None:
        """Sets switches (kernel/switches.py), from now on."""
        self.call("switch", **values)

    def journal(self) -> list[str]:
        """Events of devices since the last call."""
        return cast(list[str], self.call("journal"))

    def sleep(self) -> bool:
        """The system asks all listeners, then sleeps; False if one refused."""
        return cast(bool, self.call("sleep"))

    def wake(self) -> None:
        self.call("wake")

    def processes(self) -> list[int]:
        """The pids of the processes that use this Mac."""
        return cast(list[int], self.call("processes"))


class Device:
    """A device.  Endpoint addresses include 0x80 for IN; 0 is the control endpoint."""

    def __init__(self, mac: Mac, number: int) -> None:
        self.mac = mac
        self.number = number

    def _call(self, name: str, *positional: object, **named: object) -> Any:
        return self.mac.call(name, self.number, *positional, **named)

    def __getattr__(self, name: str) -> Any:
        """A field of its state: present, location, address, session, configuration, alternates, captured,
        captor, opener, interface_openers, drivers, waiting, counters.
        """
        if name.startswith("_"):
            raise AttributeError(name)
        state = self._call("state")
        if name not in state:
            raise AttributeError(name)
        return state[name]

    @property
    def busid(self) -> tuple[int, int]:
        """Bus number and address, as in libusb."""
        return self.location >> 24, self.address

    def unplug(self) -> None:
        self._call("unplug")

    def replug(self) -> None:
        """Unplug and replug at the same port."""
        self._call("replug")

    def give(self, address: int, data: bytes) -> None:
        """Queue data for the host in full packets; the last one may be short."""
        self._call("give", address, data)

    def give_packets(self, address: int, *packets: bytes) -> None:
        """Queue these packets; isochronous: one for each packet of the host's transfers."""
        self._call("give_packets", address, list(packets))

    def forget(self) -> None:
        """Clear the device's state for the next test: data, credit, halts and requests."""
        self._call("forget")

    def left(self, address: int) -> bytes:
        """Queued data that the host has not read."""
        return cast(bytes, self._call("left", address))

    def taken(self, address: int) -> bytes:
        """Data received at an OUT endpoint since the last call."""
        return cast(bytes, self._call("taken", address))

    def credit(self, address: int, packets: int | None) -> None:
        """Accept so many more packets, then answer NAK; None: accept all."""
        self._call("credit", address, packets)

    def stall(self, address: int) -> None:
        """Halts an endpoint."""
        self._call("stall", address)

    def requests(self) -> list[tuple[bytes, bytes]]:
        """Setup and data of the control requests received since the last call."""
        return cast(list[tuple[bytes, bytes]], self._call("requests"))

    def answer(self, request: int, data: bytes | None) -> None:
        """Set the answer to vendor and class IN requests with this bRequest; None: STALL."""
        self._call("answer", request, data)

    def hold_control(self, holds: bool = True) -> None:
        """Answer control requests with NAK, or stop that."""
        self._call("hold_control", holds)

    def hold_isochronous(self, holds: bool = True) -> None:
        """Lets isochronous transfers wait, or lets those go on whose frames have passed."""
        self._call("hold_isochronous", holds)

    def refuse_configuration(self, code: int) -> None:
        """Make the next SET_CONFIGURATION or SET_INTERFACE fail with an IOReturn."""
        self._call("refuse_configuration", code)

    def until_waiting(self, address: int, count: int) -> None:
        """Wait until so many transfers are pending at the endpoint; fails after ten seconds."""
        self._call("until_waiting", address, count)

    def until(self, field: str, value: object) -> None:
        """Wait until a field of its state has this value; fails after ten seconds."""
        self._call("until_state", field, value)


class OwnMac(Mac):
    """A separate Mac: starts a kernel; `close` stops it."""

    def __init__(self) -> None:
        # not below the test's directory: processes of other users connect, and the name must be short
        self.directory = Path(tempfile.mkdtemp(prefix="software-mac-"))
        self.directory.chmod(0o755)
        path = self.directory / "kernel"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mac.kernel", path, "--parent"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", "the kernel did not start"
        super().__init__(path)

    def close(self) -> None:
        """Stops the kernel; fails if it had internal errors."""
        problems = self.call("problems")
        super().close()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        assert problems == [], problems

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def environment(self, libusb: Path) -> dict[str, str]:
        """The environment of a process of this Mac, with libusb from the directory."""
        found = {**os.environ, VARIABLE: str(self.path), "LD_LIBRARY_PATH": str(libusb)}
        if libusb.name == "stock-asan":
            found["LSAN_OPTIONS"] = f"suppressions={LEAKS}"
        return found
