"""What usbipd costs where nothing happens, and at the worst: start, memory, wake-ups.  Runs in the bench.

Linux only: memory and wake-ups are read from /proc.  The package is installed as users have it: the wheel, in
a separate environment with its dependencies and nothing else.  What developers install beside it changes
how long a start takes.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from tests.bench.result import Bound, Comparison
from tests.client import Client, Session
from tests.integration.daemon import PATIENCE, Lines
from tests.urb import Submit, encode
from usbipd.addresses import parse_listen
from usbipd.protocol.constants import USBIP_DIR_IN, USBIP_DIR_OUT
from usbipd.simulated.loopback import LOOPBACK_OUT, SOURCE_IN

ROOT: Final = Path(__file__).parents[2]

DEVICES: Final = "mass-storage,keyboard,serial,loopback,audio,camera,loopback,keyboard"
RUNS: Final = 20
"""Starts of either side in one turn, alternating; the turn's sample is their median."""
START_TARGET: Final = 2.0

KIB: Final = 1024
IDLE_WORKER: Final = 12 * KIB
"""KiB of private memory."""
BUDGET: Final = 64 << 20
"""Bytes: `transfer_budget` unless configured (usbipd/config.py)."""
LARGEST_GROWTH: Final = (BUDGET + (64 << 10) + 4096 * KIB) // KIB
"""KiB that one client may cost a worker: its budget, 64 KiB to receive into, and 4,096 URBs of less than
1 KiB each (ARCHITECTURE.md, The pump; cython/pool.pxi)."""

IDLE_TIME: Final = 20.0
"""Seconds in which wake-ups are counted."""
SETTLED: Final = 2.0
"""Seconds without a wake-up until the daemon counts as idle."""
FULL: Final = 1.0
"""Seconds in which the worker takes nothing until it counts as full."""


def compare(work: Path, turns: int) -> list[Comparison | Bound]:
    """Start time of `usbipd-ext --status`; memory and wake-ups of a daemon with eight devices; a flood."""
    programs = install(work)
    with _daemon(programs) as daemon:
        rows: list[Comparison | Bound] = [*start_time(programs, daemon, turns)]
        rows.append(
            Bound(
                "worker, idle: private memory",
                "KiB",
                tuple(private_memory(pid) for pid in daemon.workers.values()),
                IDLE_WORKER,
            )
        )
        rows += wake_ups(daemon)
        rows += floods(daemon)
    return rows


def install(work: Path) -> Path:
    """The directory of the installed programs, made below `work`."""
    environment = work / "installed"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with TemporaryDirectory() as directory:
        wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, str(ROOT)]
        subprocess.run([*pip, *wheel], check=True)
        venv = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(environment)]
        subprocess.run(venv, check=True)
        [built] = Path(directory).glob("*.whl")
        target = ["--python", str(environment / "bin" / "python"), "install", str(built)]
        subprocess.run([*pip, *target], check=True)
    return environment / "bin"


@dataclass(frozen=True)
class _Daemon:
    """An installed daemon: its control socket, where clients find it, and its processes."""

    socket: Path
    host: str
    port: int
    extension: int
    server: int
    workers: dict[str, int]
    """By busid."""
    loopback: str
    """The busid of one of its loopback devices."""


@contextlib.contextmanager
def _daemon(programs: Path) -> Iterator[_Daemon]:
    """Runs it until the end of the block."""
    with TemporaryDirectory() as directory:
        control = Path(directory) / "control.sock"
        options = ["--listen", "127.0.0.1:0", "--simulate", DEVICES, "--socket", str(control)]
        command = [str(programs / "usbipd-ext"), "--run", *options]
        with (Path(directory) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        output = Lines(process.stdout)
        try:
            announced = output.wait_for(" listens on ")
            host, port = parse_listen(announced.split(" listens on ")[1].rstrip("."))
            yield _look_at(programs, control, host, port)
        finally:
            process.terminate()
            process.wait(PATIENCE)
            output.close()


def _look_at(programs: Path, control: Path, host: str, port: int) -> _Daemon:
    command = [str(programs / "usbipd-ext"), "--status", "--json", "--socket", str(control)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    status: dict[str, Any] = json.loads(printed)["status"]
    [server] = [each["pid"] for each in status["processes"] if each["role"] == "server"]
    return _Daemon(
        control,
        host,
        port,
        extension=status["pid"],
        server=server,
        workers={each["busid"]: each["worker_pid"] for each in status["devices"]},
        loopback=next(each["busid"] for each in status["devices"] if "loopback" in each["product"].lower()),
    )


# ---- start -------------------------------------------------------------------------------------------------


def start_time(programs: Path, daemon: _Daemon, turns: int) -> list[Comparison]:
    """`usbipd-ext --status` from its first instruction to its exit, as text and as JSON."""
    nothing = [str(programs / "python"), "-c", "pass"]
    ask = [str(programs / "usbipd-ext"), "--status", "--socket", str(daemon.socket)]
    rows = []
    for what, command in (("usbipd-ext --status", ask), ("usbipd-ext --status --json", [*ask, "--json"])):
        pairs = [alternate(command, nothing) for _ in range(turns)]
        ours, reference = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        rows.append(Comparison(what, "ms", ours, reference, "python -c pass", START_TARGET, "at most"))
    return rows


def alternate(one: list[str], other: list[str]) -> tuple[float, float]:
    """Medians of RUNS runs of either command, in ms."""
    pairs = [(_run_time(one), _run_time(other)) for _ in range(RUNS)]
    return median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)


def _run_time(command: list[str]) -> float:
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begin = time.perf_counter()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=nowhere)
    _pid, status = os.waitpid(pid, 0)
    end = time.perf_counter()
    if status != 0:
        sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return (end - begin) * 1000


# ---- memory ------------------------------------------------------------------------------------------------


def private_memory(pid: int) -> int:
    """KiB that no other process shares: Private_* of Linux's smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def floods(daemon: _Daemon) -> list[Bound]:
    """What a worker grows by while its client sends all that is taken, and reads no reply."""
    kinds = (
        ("OUT of 1 MiB that the device never takes", LOOPBACK_OUT, 1 << 20),
        ("OUT of 16 KiB that the device never takes", LOOPBACK_OUT, 16 << 10),
        ("OUT of 64 B that the device never takes", LOOPBACK_OUT, 64),
        ("IN of 1 MiB that the client never reads", SOURCE_IN, 1 << 20),
        ("IN of 16 KiB that the client never reads", SOURCE_IN, 16 << 10),
    )
    rows = []
    for what, endpoint, size in kinds:
        with Client(daemon.host, daemon.port).import_device(daemon.loopback) as session:
            grown = _flood(session, daemon.workers[daemon.loopback], endpoint, size)
        rows.append(Bound(f"worker, flooded with {what}: growth", "KiB", (grown,), LARGEST_GROWTH))
    return rows


def _flood(session: Session, pid: int, endpoint: int, size: int) -> int:
    """KiB by which the worker has grown at most, when it takes no more."""
    direction = USBIP_DIR_IN if endpoint & 0x80 else USBIP_DIR_OUT
    data = bytes(0 if direction == USBIP_DIR_IN else size)
    before = most = private_memory(pid)
    session.connection.settimeout(FULL)
    rest = memoryview(b"")
    with contextlib.suppress(TimeoutError):
        while True:
            if not rest:
                submit = Submit(
                    session.next_seqnum(),
                    session.device.devid,
                    direction,
                    endpoint & 0x0F,
                    0,
                    size,
                    data=data,
                )
                rest = memoryview(encode(submit))
            rest = rest[session.connection.send(rest) :]
            if size >= 1 << 20:  # few URBs: each may be the last that fits
                most = max(most, private_memory(pid))
    return max(most, private_memory(pid)) - before


# ---- wake-ups ----------------------------------------------------------------------------------------------


def wake_ups(daemon: _Daemon) -> list[Bound]:
    """How often each kind of process is woken while idle: devices claimed, none attached."""
    kinds = {
        "extension": [daemon.extension],
        "server": [daemon.server],
        "workers": list(daemon.workers.values()),
    }
    every = [pid for pids in kinds.values() for pid in pids]
    _await_idle(every)
    before = {kind: _times_woken(pids) for kind, pids in kinds.items()}
    time.sleep(IDLE_TIME)
    woken = {kind: _times_woken(pids) - before[kind] for kind, pids in kinds.items()}
    return [
        Bound(
            f"{kind}, idle, {len(daemon.workers)} devices claimed: wake-ups", "1/s", (times / IDLE_TIME,), 0.0
        )
        for kind, times in woken.items()
    ]


def _await_idle(pids: Sequence[int]) -> None:
    """Returns when nothing has woken them for SETTLED; what does so periodically, the count will show."""
    deadline = time.monotonic() + 10 * SETTLED
    before = -1
    while (now := _times_woken(pids)) != before and time.monotonic() < deadline:
        before = now
        time.sleep(SETTLED)


def _times_woken(pids: Sequence[int]) -> int:
    """How often the threads of these processes have gone to sleep: each time but the last they were woken."""
    statuses = [path.read_text() for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(
        int(line.split()[1])
        for status in statuses
        for line in status.splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    )
