"""A slow, lossy or stalled network between a server and a client.  Runs in the bench, as root.

link/wire.c moves the packets between two network namespaces that nothing else uses.  They have no names, and
end with the last process in them: nothing is left when the bench ends, however it does.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.bench.programs import FLAGS, TIMEOUT

SOURCES: Final = Path(__file__).parent / "link"
SERVER: Final = "192.0.2.1"
CLIENT: Final = "192.0.2.2"
"""Addresses on either side, which wire.c has, too (RFC 5737)."""
_LINK: Final = "192.0.2.0/24"

_AVAILABLE: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_CLONE_NEWNET: Final = 0x40000000  # include/uapi/linux/sched.h
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Conditions:
    """Of both directions alike.

    rtt_ms: of a packet and its answer on an empty link, half of it in either direction.
    jitter_ms: the most by which a packet is late at random; none overtakes another.
    mbit_s: with the framing of Ethernet; 0: no limit.
    loss: the part of all packets that is lost at random, 0 to 1.
    queue: bytes that may wait for the link; what comes beyond is dropped.
    congestion_control: of TCP on both sides, as the kernel calls it.
    """

    rtt_ms: float
    jitter_ms: float = 0.0
    mbit_s: float = 100.0
    loss: float = 0.0
    queue: int = 250_000
    congestion_control: str = "cubic"


def congestion_controls() -> list[str]:
    """Those that this kernel has."""
    return _AVAILABLE.read_text().split()


def build(work: Path) -> None:
    """Compiles the emulator into `work`, as wire."""
    compiler = [os.environ.get("CC", "gcc"), *FLAGS]
    sources = [str(SOURCES / name) for name in ("wire.c", "way.c")]
    subprocess.run([*compiler, *sources, "-o", str(work / "wire")], check=True)


class Network:
    """Two network namespaces and a link between them, from `with` to the end of its block."""

    def __init__(self, work: Path, conditions: Conditions, seed: int = 1) -> None:
        """`work` has what `build` made.  Networks of one `seed` lose the same packets, by number."""
        self._command = [
            *(str(work / "wire"), str(conditions.rtt_ms * 500), str(conditions.jitter_ms * 1000)),
            *(str(conditions.mbit_s), str(conditions.loss), str(conditions.queue), str(seed)),
        ]
        self._congestion_control = conditions.congestion_control

    def __enter__(self) -> Self:
        """Exits when there can be no such network; wire has said why."""
        self._wire = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._wire.stdout is not None
        self._namespaces = self._wire.stdout.readline().split()
        if len(self._namespaces) != 2:
            self._end()
            sys.exit("no emulated network: this takes root, and /dev/net/tun")
        try:
            for side in (self.server_side(), self.client_side()):
                with side:
                    self._set_up_tcp()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def server_side(self) -> contextlib.AbstractContextManager[None]:
        """Sockets made and programs started meanwhile by this thread are at SERVER."""
        return _inside(self._path(0))

    def client_side(self) -> contextlib.AbstractContextManager[None]:
        """Sockets made and programs started meanwhile by this thread are at CLIENT."""
        return _inside(self._path(1))

    @property
    def pid(self) -> int:
        """Of the emulator."""
        return self._wire.pid

    def stall(self, ms: int) -> None:
        """For so long no packet arrives, in neither direction; then all of them do."""
        assert self._wire.stdin is not None
        self._wire.stdin.write(f"stall {ms}\n")

    def _set_up_tcp(self) -> None:
        """In the namespace where this thread is."""
        # By route: a namespace may not choose a default that the system has not allowed to everyone.
        route = ["ip", "route", "replace", _LINK, "dev", "wire", "congctl", self._congestion_control]
        subprocess.run(route, check=True)
        # no connection starts with what the last one has learned
        Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")

    def _path(self, side: int) -> Path:
        return Path(f"/proc/{self.pid}/fd/{self._namespaces[side]}")

    def _end(self) -> None:
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.close()
        self._wire.stdout.close()
        self._wire.wait(TIMEOUT)


@contextlib.contextmanager
def _inside(namespace: Path) -> Iterator[None]:
    """This thread is in that network namespace (setns(2); os.setns is Python 3.12's)."""
    with Path("/proc/thread-self/ns/net").open() as before:
        with namespace.open() as wanted:
            _set_namespace(wanted.fileno())
        try:
            yield
        finally:
            _set_namespace(before.fileno())


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
