"""A whole daemon of a Mac, started, queried and stopped as by a user.  Runs in pytest."""

import contextlib
import functools
import io
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final, cast

from tests.client import Client, ClosedError, RefusedError, Session
from tests.integration.daemon import PATIENCE, Daemon, running
from tests.mac.machine import Machine
from usbipd.__main__ import load_daemon
from usbipd.cli import ext, main
from usbipd.protocol.constants import USB_REQ_GET_DESCRIPTOR

BULK_OUT, BULK_IN = 0x01, 0x81
PACKET: Final = 512
"""Bytes of a bulk packet of a gadget."""
RE_ENUMERATION: Final = 1.7
"""Seconds; the longest time measured on a Mac."""
CONFIG: Final = 'log_level = "debug"\n'


class MacDaemon(Daemon):
    """`usbipd-ext --run` on a Mac.  Its bindings are in the directory of that Mac, and outlive it."""

    def __init__(self, machine: Machine, *, user: int | None = None, config: str = CONFIG) -> None:
        """`user` is the id of an ordinary user that runs and queries it; None: the user of the tests."""
        self.machine = machine
        self._user = user
        self.command = machine.program("usbipd-ext", user)
        self.user_command = machine.program("usbipd", user)
        place = machine.state.parent
        place.mkdir(exist_ok=True)
        if user is not None:
            os.chown(place, user, user)
        super().__init__(place, None, config, "--state", str(machine.state))
        self.client = Client(self.host, self.port)

    # ---- requests of a user --------------------------------------------------------------------------------

    def document(self, *arguments: str) -> dict[str, Any]:
        """As in `Daemon`; for root without a new process, which would dominate the time of most tests."""
        if self._user is not None:
            return super().document(*arguments)
        return _ask(main.main, *arguments, "--json", "--socket", str(self.socket))

    def status(self) -> dict[str, Any]:
        """As in `Daemon`, run like `document`."""
        if self._user is not None:
            return super().status()
        command = functools.partial(ext.main, load_daemon=load_daemon)
        return cast(
            dict[str, Any], _ask(command, "--status", "--json", "--socket", str(self.socket))["status"]
        )

    def listed(self, busid: str) -> dict[str, Any] | None:
        """A device in `usbipd list`; None: it is not listed."""
        devices = self.document("list")["devices"]
        return next((each for each in devices if each["busid"] == busid), None)

    def wait_for(self, busid: str) -> None:
        """Wait until the device is listed."""
        until(lambda: self.listed(busid) is not None, f"{busid} is not listed")

    def wait_until_gone(self, busid: str) -> None:
        """Wait until the device is not listed."""
        until(lambda: self.listed(busid) is None, f"{busid} is listed but does not exist")

    def history(self, *events: str) -> list[dict[str, Any]]:
        """These events, oldest first."""
        entries = self.document("history", "--limit", "1000")["entries"]
        return [entry for entry in reversed(entries) if entry["event"] in events]

    def wait_for_state(self, busid: str, state: str) -> dict[str, Any]:
        """As in `Daemon`, also for a device that is not listed yet."""
        self.wait_for(busid)
        return super().wait_for_state(busid, state)

    def wait_for_successor(self, busid: str, worker: int) -> int:
        """Wait for the worker that shares the device after `worker`, which lost it or exited."""

        def succeeded() -> bool:
            devices = [each for each in self.status()["devices"] if each["busid"] == busid]
            return any(each["state"] == "shared" and each["worker_pid"] != worker for each in devices)

        until(succeeded, f"{busid} is not shared by another worker")
        return self.worker_pid(busid)

    def bind(self, busid: str) -> None:
        """Shares a plugged-in device."""
        self.wait_for(busid)
        self.document("bind", "--busid", busid)

    def unbind(self, *which: str) -> None:
        self.document("unbind", *which)

    def attach(self, busid: str) -> Session:
        """Attaches a shared device once it is free: the previous session may just have ended."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(RefusedError, ClosedError, OSError):
                return self.client.import_device(busid)
            assert time.monotonic() < deadline, f"{busid} cannot be attached: {self.log_text()}"

    def checks(self) -> dict[str, list[dict[str, Any]]]:
        """The results of doctor, by name of the check."""
        found: dict[str, list[dict[str, Any]]] = {}
        for check in json.loads(self.usbipd("doctor", "--json").stdout)["checks"]:
            found.setdefault(check["name"], []).append(check)
        return found

    # ---- its processes -------------------------------------------------------------------------------------

    def kill_all(self) -> None:
        """Kills all its processes with kill -9, and waits for their end."""
        pids = [pid for each in self.pids().values() for pid in each]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        until(lambda: not running(pids), f"some of the processes {pids} still exist")

    def pids(self) -> dict[str, list[int]]:
        """Its processes by role."""
        found: dict[str, list[int]] = {}
        for process in self.status()["processes"]:
            found.setdefault(process["role"], []).append(process["pid"])
        return found

    def log_text(self) -> str:
        return "\n".join(self.log.lines())

    def stop(self) -> None:
        """SIGTERM: the daemon must exit with 0, leave no process behind and have logged no error."""
        pids = [pid for each in self.pids().values() for pid in each]
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        self.output.close()
        log = self.log.close()
        assert code == 0, log
        assert "Traceback" not in log, log
        assert not [line for line in log.splitlines() if " ERROR " in line], log
        assert not running(pids), log


def _ask(command: Callable[[list[str]], int], *arguments: str) -> dict[str, Any]:
    """The output of a command that must succeed."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = command(list(arguments))
    assert code == 0, errors.getvalue()
    return cast(dict[str, Any], json.loads(output.getvalue()))


def until(condition: Callable[[], object], why: str) -> None:
    """Polls until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, why


def echo(session: Session) -> None:
    """Sends bytes through the loopback of a gadget and back."""
    assert session.bulk_out(BULK_OUT, b"echo") == 4
    assert session.bulk_in(BULK_IN, PACKET) == b"echo"


def use(daemon: MacDaemon, busid: str) -> None:
    """Runs one session with a gadget."""
    with daemon.attach(busid) as session:
        assert session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, 0x0100, length=18)[:2] == b"\x12\x01"
        echo(session)
