"""A whole daemon under test: started, watched and stopped as a user would."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, cast

import psutil

from tests.client import Client
from tests.programs import EXECUTABLE, program
from usbipd.addresses import parse_listen
from usbipd.simulated import catalog

SIMULATE: Final = "mass-storage,keyboard,serial,loopback,audio,camera"
PATIENCE: Final = 20.0
"""Seconds that a step may take on a slow machine before a test fails."""


COMMAND: Final = program("usbipd-ext")
USBIPD: Final = program("usbipd")


class Lines:
    """The output of a process, line by line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def position(self) -> int:
        """The index of the next line, for `wait_for(..., since)`."""
        with self._changed:
            return len(self._lines)

    def lines(self) -> list[str]:
        """The output so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, text: str, since: int = 0) -> str:
        """The first line from `since` on that contains `text`; waits for it."""

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, PATIENCE)
            line = found()
            if line is None:
                raise AssertionError(f"no line with {text!r} in:\n" + "\n".join(self._lines[since:]))
            return line

    def close(self) -> str:
        """All output, once the process has exited."""
        self._thread.join(PATIENCE)
        self._stream.close()
        return "\n".join(self._lines)


class Daemon:
    """`usbipd-ext --run` in a separate directory, on a free port of an address of this machine."""

    command: Sequence[str] = COMMAND
    """The command that starts it."""
    user_command: Sequence[str] = USBIPD
    """The user's command."""

    def __init__(
        self,
        directory: Path,
        simulate: str | None = SIMULATE,
        config: str = "",
        *options: str,
        address: str = "127.0.0.1",
    ) -> None:
        """`config` is the text of its usbipd.toml; `options` are further ones of its command line.

        `simulate`: None is a daemon that shares the devices of its host.
        """
        self.directory = directory
        self.socket = directory / "control.sock"
        file = directory / "usbipd.toml"
        file.write_text(config)
        self.devices = 0 if simulate is None else len(catalog.parse_simulate(simulate))
        arguments = ["--run", "--listen", f"{address}:0"]
        arguments += [] if simulate is None else ["--simulate", simulate]
        arguments += ["--socket", str(self.socket), "--config", str(file), *options]
        self.process = subprocess.Popen(
            [*self.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.output = Lines(cast(IO[str], self.process.stdout))
        self.log = Lines(cast(IO[str], self.process.stderr))
        try:
            # The announcement is printed as a whole once all devices are claimed.
            announced = self.output.wait_for(" listens on ")
        except AssertionError as error:
            self.process.kill()
            raise AssertionError(f"the daemon does not start:\n{self.log.close()}") from error
        self.host, self.port = parse_listen(announced.split(" listens on ")[1].rstrip("."))
        self.pid = self.process.pid
        """The extension; the executable has a launcher, which forwards signals."""
        if EXECUTABLE is not None:
            [extension] = psutil.Process(self.process.pid).children()
            self.pid = extension.pid

    def busid(self, name: str, instance: int = 0) -> str:
        """The busid of a simulated device, the first of its kind or the `instance`th after it."""
        product = int.from_bytes(catalog.NAMES[name].device_descriptor[10:12], "little")
        devices = [device for device in Client(self.host, self.port).devlist() if device.idProduct == product]
        return devices[instance].busid

    def usbipd(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The user's command with this daemon."""
        return subprocess.run(
            [*self.user_command, *arguments, "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def document(self, *arguments: str) -> dict[str, Any]:
        """The --json output of a verb that succeeds."""
        answer = self.usbipd(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr
        return cast(dict[str, Any], json.loads(answer.stdout))

    def status(self) -> dict[str, Any]:
        """The output of `usbipd-ext --status --json`."""
        answer = subprocess.run(
            [*self.command, "--status", "--json", "--socket", str(self.socket)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        status: dict[str, Any] = json.loads(answer.stdout)["status"]
        return status

    def device(self, busid: str) -> dict[str, Any]:
        """The status of one device."""
        [device] = [device for device in self.status()["devices"] if device["busid"] == busid]
        return cast(dict[str, Any], device)

    def wait_for_state(self, busid: str, state: str) -> dict[str, Any]:
        """The status of a device once it is in this state; polls for it."""
        deadline = time.monotonic() + PATIENCE
        while (device := self.device(busid))["state"] != state:
            assert time.monotonic() < deadline, f"{busid} does not become {state}: {device}"
        return device

    def worker_pid(self, busid: str) -> int:
        """The process that holds this device; polls for it."""
        deadline = time.monotonic() + PATIENCE
        while (pid := self.device(busid)["worker_pid"]) is None:
            assert time.monotonic() < deadline, f"no worker takes {busid}"
        return int(pid)

    def stop(self) -> None:
        """Ctrl-C: the daemon must exit with code 0 and leave nothing behind."""
        pids = [process["pid"] for process in self.status()["processes"]]
        assert len(pids) == 2 + self.devices
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE)
        self.output.close()
        log = self.log.close()
        assert code == 0, log
        assert "Traceback" not in log, log
        assert "never awaited" not in log
        left = running(pids)
        assert not left, f"processes {left} are left:\n{log}"
        assert [path.name for path in self.directory.iterdir()] == ["usbipd.toml"], log

    def kill(self) -> None:
        """kill -9, which always works.  The children notice it and exit too."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


def running(pids: list[int]) -> list[str]:
    """Those of `pids` that run, without zombies that wait for init."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{pid} {process.name()}")
    return found


def until(condition: Callable[[], object]) -> None:
    """Poll until it holds; a poll takes long enough to avoid a busy loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
