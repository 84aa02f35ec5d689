"""The programs that the bench runs: load generator, null server, daemon under test.  Runs in the bench.

All of them share one processor, unless told otherwise: the rate is then what both sides cost together, and no
wake-up crosses processors, which on a virtual machine takes longer than an URB.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from tests.client import Client
from tests.integration.daemon import Daemon

SOURCES: Final = Path(__file__).parent / "load"
FLAGS: Final = ("-O2", "-g", "-std=gnu11", "-Wall", "-Wextra")
PROCESSOR: Final = min(os.sched_getaffinity(0))
TIMEOUT: Final = 60.0
LOCAL: Final = "127.0.0.1"

Kind = Literal["control", "bulk-in", "bulk-out"]


def build(work: Path) -> None:
    """Compiles the load generator and the null server into `work`, as usbip_load and usbip_null."""
    for name, sources in (("usbip_load", ["usbip_load.c", "options.c"]), ("usbip_null", ["usbip_null.c"])):
        command = [os.environ.get("CC", "gcc"), *FLAGS, *(str(SOURCES / each) for each in sources)]
        subprocess.run([*command, "-o", str(work / name)], check=True)


@dataclass(frozen=True)
class Server:
    """A USB/IP server of this machine with one device to load, and the process that moves its URBs."""

    port: int
    busid: str
    pid: int


@contextlib.contextmanager
def on_processor(processors: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile runs on these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def before_all_else() -> Iterator[None]:
    """This thread, and what is started meanwhile, waits for no other program of the machine.  Takes root.

    For what is measured in milliseconds: on a busy machine a program may wait that long for a processor.
    """
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameters)


@contextlib.contextmanager
def null_server(
    work: Path,
    *options: str,
    address: str = LOCAL,
    wrapper: Sequence[str] = (),
    processors: Sequence[int] = (PROCESSOR,),
) -> Iterator[Server]:
    """The null server on a free port; `wrapper` is a command that starts it, such as valgrind."""
    with on_processor(processors):
        process = subprocess.Popen(
            [*wrapper, str(work / "usbip_null"), "-a", address, "-p", "0", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
    assert process.stdout is not None
    try:
        yield Server(int(process.stdout.readline()), "1-1", process.pid)
    finally:
        process.terminate()
        process.wait(TIMEOUT)
        process.stdout.close()


@contextlib.contextmanager
def daemon(
    simulate: str = "loopback",
    config: str = "",
    processors: Sequence[int] = (PROCESSOR,),
    address: str = LOCAL,
) -> Iterator[Daemon]:
    """usbipd with simulated devices, in a temporary directory."""
    with TemporaryDirectory() as directory:
        with on_processor(processors):
            running = Daemon(Path(directory), simulate, config, address=address)
        try:
            yield running
            running.stop()
        finally:
            running.kill()


def servers_of(running: Daemon) -> list[Server]:
    """The devices of a daemon, as servers to be loaded."""
    busids = [device.busid for device in Client(running.host, running.port).devlist()]
    return [Server(running.port, busid, running.worker_pid(busid)) for busid in busids]


@dataclass(frozen=True)
class Load:
    """What the load generator does: URBs of one kind and size, so many in flight, for so long or so many."""

    kind: Kind
    size: int
    depth: int
    seconds: float
    count: int = 1_000_000_000

    def arguments(self, server: Server) -> list[str]:
        """For usbip_load.  Endpoint 1 is source and sink of either server, endpoint 0 the default one."""
        endpoint = "0" if self.kind == "control" else "1"
        return [
            *("-p", str(server.port), "-b", server.busid, "-P", str(server.pid)),
            *("-t", self.kind, "-e", endpoint, "-s", str(self.size), "-q", str(self.depth)),
            *("-n", str(self.count), "-T", str(self.seconds), "-w", str(min(1000, 64 * self.depth))),
        ]


@dataclass(frozen=True)
class Outcome:
    """What a run of the load generator found; its column names are those of usbip_load -h."""

    urbs: int
    urbs_s: float
    MB_s: float
    p50_us: float
    p99_us: float
    server_cpu_us: float


def start_load(
    work: Path, server: Server, load: Load, processors: Sequence[int] = (PROCESSOR,)
) -> "subprocess.Popen[str]":
    """Starts the load generator; `outcome_of` waits for it."""
    with on_processor(processors):
        return subprocess.Popen(
            [str(work / "usbip_load"), *load.arguments(server)], stdout=subprocess.PIPE, text=True
        )


def outcome_of(process: "subprocess.Popen[str]") -> Outcome:
    """What it printed.  Exits when it failed, or when URBs did: then there is nothing to be measured."""
    line, _ = process.communicate(timeout=TIMEOUT)
    if process.returncode != 0:
        sys.exit(f"{process.args!r} ended with {process.returncode}")
    values = line.split()[4:]
    urbs, _seconds, rate, megabytes, p50, p99, _slowest, server_cpu, _own_cpu, failed, _short = values
    if int(failed):
        sys.exit(f"{process.args!r}: {failed} URBs failed")
    return Outcome(int(urbs), float(rate), float(megabytes), float(p50), float(p99), float(server_cpu))


def run_load(work: Path, server: Server, load: Load) -> Outcome:
    """Starts the load generator and waits for it."""
    return outcome_of(start_load(work, server, load))
