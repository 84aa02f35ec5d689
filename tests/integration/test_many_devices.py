"""32 devices at once: each has its own process and a client that moves data."""

import os
import signal
import socket
import struct
import sys
import threading

import pytest

from tests.client import Client, Session
from tests.integration.conftest import StartDaemon
from tests.integration.test_processes import descriptors, until
from usbipd.simulated.loopback import LOOPBACK_IN, LOOPBACK_OUT

DEVICES = 32
MESSAGE = 64 << 10
HANG = 60.0
"""Seconds: 32 clients at once are slow."""
RESET = struct.pack("ii", 1, 0)  # include/linux/socket.h, struct linger: close sends RST, not FIN


class Echo:
    """A client on its own thread: it writes messages and reads them back."""

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self._number = number
        self._rounds = 0
        self._error: Exception | None = None
        self._stopping = False
        self._progress = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, rounds: int) -> None:
        """Wait for that many more rounds."""
        with self._progress:
            goal = self._rounds + rounds
            self._progress.wait_for(lambda: self._rounds >= goal or self._error is not None, HANG)
            assert self._error is None, f"client {self._number}: {self._error!r}"
            assert self._rounds >= goal, f"client {self._number} hangs after {self._rounds} rounds"

    def wait_until_failed(self) -> None:
        """Wait until it has lost its device."""
        self._thread.join(HANG)
        assert self._error is not None, f"client {self._number} has not noticed"

    def stop(self) -> None:
        """At the end of a round."""
        self._join()
        self.session.close()

    def cut_off(self) -> None:
        """Reset at the end of a round, with reads in flight."""
        self._join()  # a socket stays open while a thread waits for it
        for _ in range(16):
            self.session.submit(LOOPBACK_IN, length=MESSAGE)
        self.session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.session.close()

    def _join(self) -> None:
        self._stopping = True
        self._thread.join(HANG)
        assert self._error is None, f"client {self._number}: {self._error!r}"

    def _run(self) -> None:
        try:
            while not self._stopping:
                data = f"{self._number:8}{self._rounds:8}".encode() * (MESSAGE // 16)
                assert self.session.bulk_out(LOOPBACK_OUT, data) == MESSAGE
                assert self.session.bulk_in(LOOPBACK_IN, MESSAGE) == data
                self._tell()
        except Exception as error:
            self._tell(error)

    def _tell(self, error: Exception | None = None) -> None:
        with self._progress:
            self._rounds += error is None
            self._error = error
            self._progress.notify_all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_32_devices_at_once(start_daemon: StartDaemon) -> None:
    """All are in use; one worker is killed and one client is cut off under load, and the others continue."""
    daemon = start_daemon(",".join(["loopback"] * DEVICES))
    client = Client(daemon.host, daemon.port, timeout=HANG)
    busids = [device.busid for device in client.devlist()]
    assert len(set(busids)) == DEVICES
    held = {process["pid"]: kinds_held(process["pid"]) for process in daemon.status()["processes"]}
    echoes = [Echo(client.import_device(busid), number) for number, busid in enumerate(busids)]
    for echo in echoes:
        echo.wait_for(2)
    assert [device["state"] for device in daemon.status()["devices"]] == ["attached"] * DEVICES

    killed, cut, *others = echoes
    os.kill(daemon.worker_pid(busids[0]), signal.SIGKILL)
    killed.wait_until_failed()
    killed.session.close()
    cut.cut_off()
    for echo in others:
        echo.wait_for(2)

    again = [Echo(client.import_device(busid), number) for number, busid in enumerate(busids[:2])]
    for echo in again:
        echo.wait_for(2)
    for echo in (*again, *others):
        echo.stop()
    for busid in busids:
        daemon.wait_for_state(busid, "shared")
    pids = {process["pid"] for process in daemon.status()["processes"]}
    assert len(pids - set(held)) == 1, "one worker was replaced, and no process is left of it"
    until(lambda: all(kinds_held(pid) == held[pid] for pid in pids & set(held)))


def kinds_held(pid: int) -> list[str]:
    """The targets of a process's descriptors, without their numbers, which vary."""
    return sorted(descriptors(pid).values())
