"""The servers for the stock client: our daemon, and the kernel's own.  Runs in the guest.

The kernel's checks the machine and the scenario: a step that also fails with it is not our fault.
"""

import json
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import JOB, run, wait_for
from tests.e2e.guest.usb import DEVICES

PORT: Final = 3240
DRIVER: Final = Path("/sys/bus/usb/drivers/usbip-host")
TCP_LISTEN: Final = "0A"  # include/net/tcp_states.h
LOG: Final = JOB / "daemon.log"
STOP_TIME: Final = 10.0
"""Seconds in which a server must stop: 2 on real hardware; the emulated guest is several times slower."""


class Server(ABC):
    """A USB/IP server on 127.0.0.1."""

    ready: ClassVar[re.Pattern[str]]
    """Its message once it is ready."""

    def __init__(self, command: Sequence[str | Path], tcp_port: int = PORT) -> None:
        self._command = command
        self._tcp_port = tcp_port
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it and wait until it is ready.  Its log is daemon.log in the job directory."""
        self.launch()
        wait_for("the server to report that it is ready", self._is_ready)

    def launch(self) -> None:
        """Start it."""
        with LOG.open("ab") as log:
            self._said_before = log.tell()
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _is_ready(self) -> bool:
        if (status := self.process.poll()) is not None:
            raise StepError(f"the server exited with {status} at its start; see its log")
        return self.ready.search(self.log()) is not None

    def log(self) -> str:
        """Its log since its start."""
        with LOG.open("rb") as log:
            log.seek(self._said_before)
            return log.read().decode(errors="replace")

    def stop(self) -> None:
        """Stop it by SIGTERM, which must succeed within `STOP_TIME`."""
        family = family_of(self.process.pid)
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            raise StepError(f"the server still runs {STOP_TIME:.0f} s after SIGTERM") from None
        print(f"the server exited {time.monotonic() - start:.1f} s after SIGTERM")
        check(status == 0, f"the server exited with {status} after SIGTERM")
        left = [f"{pid} {name}" for pid, name in family.items() if command_of(pid) == name]
        check(not left, f"processes of the server still run: {', '.join(left)}")
        check(not is_listening(self._tcp_port), f"port {self._tcp_port} still accepts connections")

    @abstractmethod
    def bind(self, busid: str) -> None:
        """Share a device of this host."""

    @abstractmethod
    def unbind(self, busid: str) -> None:
        """Return it to its own driver."""


class Usbipd(Server):
    """Our daemon; its two commands are in the directory `programs`, by default beside this Python."""

    ready = re.compile(r"^usbipd \S+ listens on ", re.MULTILINE)

    def __init__(
        self,
        *options: str,
        log_level: str = "debug",
        programs: Path = Path(sys.prefix) / "bin",
        tcp_port: int = PORT,
    ) -> None:
        self._programs = programs
        command: list[str | Path] = [self._programs / "usbipd-ext", "--run", "--log-level", log_level]
        if tcp_port != PORT:
            command += ["--listen", f"127.0.0.1:{tcp_port}"]
        super().__init__([*command, *options], tcp_port)

    def devices(self) -> list[dict[str, Any]]:
        """The devices of `usbipd list --json`."""
        document = json.loads(run(self._programs / "usbipd", "list", "--json"))
        return cast("list[dict[str, Any]]", document["devices"])

    def device(self, busid: str) -> dict[str, Any]:
        """One device of `usbipd status --json`."""
        status = json.loads(run(self._programs / "usbipd", "status", "--json"))["status"]
        return _named(status["devices"], busid)

    def listed_device(self, busid: str) -> dict[str, Any]:
        """One device of `usbipd list --json`."""
        return _named(self.devices(), busid)

    def processes(self) -> list[dict[str, Any]]:
        """The processes of `usbipd-ext --status --json`."""
        status = json.loads(run(self._programs / "usbipd-ext", "--status", "--json"))["status"]
        return cast("list[dict[str, Any]]", status["processes"])

    def bind(self, busid: str) -> None:
        run(self._programs / "usbipd", "bind", "--busid", busid)

    def unbind(self, busid: str) -> None:
        run(self._programs / "usbipd", "unbind", "--busid", busid)

    def stop(self) -> None:
        super().stop()
        left = [str(path) for path in Path("/run").rglob("usbipd*")]
        check(not left, f"files are left: {', '.join(left)}")


class KernelServer(Server):
    """usbip-host and Debian's usbipd."""

    ready = re.compile("listening on ")

    def __init__(self, tcp_port: int = PORT) -> None:
        super().__init__(["/usr/sbin/usbipd", "-4", "--tcp-port", str(tcp_port)], tcp_port)

    def bind(self, busid: str) -> None:
        run("usbip", "bind", "-b", busid)

    def unbind(self, busid: str) -> None:
        run("usbip", "unbind", "-b", busid)


class BareKernelServer(KernelServer):
    """The same, also for imported devices, which the tool `usbip bind` refuses."""

    def bind(self, busid: str) -> None:
        """As the tool does it (tools/usb/usbip/src/usbip_bind.c)."""
        (DRIVER / "match_busid").write_text(f"add {busid}")
        (DEVICES / busid / "driver/unbind").write_text(busid)
        (DRIVER / "bind").write_text(busid)


def credentials(pid: int) -> dict[str, str]:
    """/proc/PID/status by key: the kernel's view of a process, not the process's own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _named(devices: list[dict[str, Any]], busid: str) -> dict[str, Any]:
    for device in devices:
        if device["busid"] == busid:
            return device
    raise StepError(f"no device {busid} among {[device['busid'] for device in devices]}")


def is_listening(tcp_port: int = PORT) -> bool:
    """Whether a server listens, without connecting: that would be a silent client."""
    port = f":{tcp_port:04X} "
    lines = [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()]
    return any(port in line and line.split()[3] == TCP_LISTEN for line in lines)


def family_of(pid: int) -> dict[int, str]:
    """`pid` and its descendants, with their command lines."""
    family = {pid: command_of(pid)}
    with suppress(OSError):  # it has exited
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                family |= family_of(int(child))
    return family


def command_of(pid: int) -> str:
    """The command line of a process, "" if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
