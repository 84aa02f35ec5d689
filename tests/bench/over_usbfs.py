"""What libusb costs: a worker of usbipd beside the least possible loop (usbfs/loop.c).  Runs in the bench.

Both use the real libusb, over a usbfs whose ioctls answer at once (usbfs/usbfs.c).  The worker is the shipped
one, as a separate process with claim and pump.  The bench stands in for the rest of the daemon: the
extension gives its children a clean environment, without LD_PRELOAD.
"""

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.programs import (
    FLAGS,
    PROCESSOR,
    TIMEOUT,
    Load,
    Outcome,
    Server,
    on_processor,
    outcome_of,
    start_load,
)
from tests.bench.result import Comparison
from tests.bench.usbfs.host import BUSID, BUSNUM, DEVNUM, fill
from usbipd.config import Limits
from usbipd.counters import COUNTER_PAGE_SIZE
from usbipd.ipc import CHANNEL_DESCRIPTOR
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import CHILDREN, AttachParameters, ClaimParameters, ClaimResult
from usbipd.ipc.conversation import Event
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.protocol.constants import ST_OK
from usbipd.protocol.op import ImportRequest, RequestReader, UsbDevice, encode_import_reply

SOURCES: Final = Path(__file__).parent / "usbfs"
KIB: Final = 1024
AGAINST: Final = "least libusb loop"


@dataclass(frozen=True)
class Row:
    """`target` is that of the rate."""

    what: str
    load: Load
    target: float | None = None


def rows(seconds: float) -> Iterable[Row]:
    """What is measured."""
    yield Row("control 18 B, depth 1", Load("control", 18, 1, seconds))
    yield Row("control 18 B, depth 32", Load("control", 18, 32, seconds), 0.8)
    yield Row("bulk IN 512 B, depth 32", Load("bulk-in", 512, 32, seconds), 0.8)
    yield Row("bulk OUT 512 B, depth 32", Load("bulk-out", 512, 32, seconds), 0.8)
    yield Row("bulk IN 16 KiB, depth 32", Load("bulk-in", 16 * KIB, 32, seconds))


def build(work: Path) -> None:
    """Compiles usbfs and loop into `work`, as usbfs.so and loop, and puts the files of the host there."""
    asked = ["pkg-config", "--cflags", "--libs", "libusb-1.0"]
    libusb = shlex.split(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    compiler = [os.environ.get("CC", "gcc"), *FLAGS]
    usbfs = ["-shared", "-fPIC", str(SOURCES / "usbfs.c"), "-o", str(work / "usbfs.so")]
    subprocess.run([*compiler, *usbfs], check=True)
    subprocess.run([*compiler, str(SOURCES / "loop.c"), "-o", str(work / "loop"), *libusb], check=True)
    fill(work / "host")


@dataclass(frozen=True)
class Side:
    """A server that has the one device; `client` is entered while the load generator runs."""

    server: Server
    client: Callable[[], AbstractContextManager[None]]


def environment(work: Path) -> dict[str, str]:
    """Of a process that sees the host of `build`."""
    here = work.absolute()
    return {**os.environ, "LD_PRELOAD": str(here / "usbfs.so"), "USBFS_ROOT": str(here / "host")}


@contextlib.contextmanager
def loop(work: Path, wrapper: Sequence[str] = ()) -> Iterator[Side]:
    """The reference; `wrapper` is a command that starts it, such as valgrind."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with on_processor([PROCESSOR]):
            process = subprocess.Popen(
                [*wrapper, str(work / "loop")], env=environment(work), stdin=listener.fileno()
            )
        try:
            yield Side(Server(listener.getsockname()[1], BUSID, process.pid), contextlib.nullcontext)
        finally:
            process.terminate()
            process.wait(TIMEOUT)


@contextlib.contextmanager
def worker(work: Path, wrapper: Sequence[str] = ()) -> Iterator[Side]:
    """A worker that has claimed the device."""
    ours, theirs = socket.socketpair()

    def hand_over() -> None:
        os.dup2(theirs.fileno(), CHANNEL_DESCRIPTOR)
        os.set_inheritable(CHANNEL_DESCRIPTOR, True)  # it may have been that descriptor already

    with theirs, on_processor([PROCESSOR]):
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "usbipd", "@worker", BUSID],
            env=environment(work),
            stdin=subprocess.DEVNULL,
            preexec_fn=hand_over,
            close_fds=False,  # the channel has to stay; what Python has opened closes by itself
        )
    try:
        channel = BlockingChannel(ours, "extension", CHILDREN)
        with contextlib.closing(channel), socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(TIMEOUT)
            device = claim(channel, work / "host")
            server = Server(listener.getsockname()[1], BUSID, process.pid)
            yield Side(server, lambda: attached(listener, channel, device))
            channel.request(Command.RELEASE, Nothing(), Nothing, timeout=TIMEOUT)
        process.wait(TIMEOUT)
    finally:
        process.kill()
        process.wait(TIMEOUT)


def claim(channel: BlockingChannel, host: Path) -> UsbDevice:
    """Has the worker take the device of the host that is filled in there."""
    parameters = ClaimParameters(
        busid=BUSID,
        path=str(host.absolute() / "sys/bus/usb/devices" / BUSID),
        busnum=BUSNUM,
        devnum=DEVNUM,
        simulated=None,
        confinement=None,
        transfer_budget=Limits().transfer_budget,
        device_memory="off",  # the usbfs of the bench has none
        log_level="info",
        log_to="stderr",
    )
    with tempfile.TemporaryFile() as page:
        page.truncate(COUNTER_PAGE_SIZE)
        answer = channel.request(
            Command.CLAIM, parameters, ClaimResult, timeout=TIMEOUT, descriptor=page.fileno()
        )
    return answer.device


@contextlib.contextmanager
def attached(listener: socket.socket, channel: BlockingChannel, device: UsbDevice) -> Iterator[None]:
    """Serves the next client as the server does, hands it to the worker, and afterwards waits for its end."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(TIMEOUT)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, request = RequestReader(), None
        while request is None and (data := connection.recv(reader.wanted)):
            request = reader.feed(data)
        if request != ImportRequest(BUSID):
            raise RuntimeError(f"the load generator sent {request}")
        connection.sendall(encode_import_reply(ST_OK, device))
        parameters = AttachParameters(client="usbip_load")
        channel.request(Command.ATTACH, parameters, Nothing, timeout=TIMEOUT, descriptor=connection.fileno())
    yield
    while (item := channel.receive(TIMEOUT)) is not None:
        if isinstance(item, Event) and item.event is EventName.RESTORED:
            return
    raise RuntimeError("the worker has ended")


def run_load(work: Path, side: Side, load: Load) -> Outcome:
    """Starts the load generator and waits for it."""
    process = start_load(work, side.server, load)
    try:
        with side.client():
            return outcome_of(process)
    finally:
        process.kill()
        process.wait(TIMEOUT)


def compare(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """The rows on one processor; each turn is `seconds` for either side.

    `work` has the load generator (`programs.build`).
    """
    build(work)
    results: list[Comparison] = []
    with ExitStack() as stack:
        ours, reference = stack.enter_context(worker(work)), stack.enter_context(loop(work))
        for row in rows(seconds):
            pairs = [
                (run_load(work, ours, row.load), run_load(work, reference, row.load)) for _ in range(turns)
            ]
            results += _comparisons(row, pairs)
    return results


def _comparisons(row: Row, pairs: list[tuple[Outcome, Outcome]]) -> Iterable[Comparison]:
    what = f"libusb over an instant usbfs, {row.what}"
    ours, reference = (tuple(pair[side] for pair in pairs) for side in (0, 1))
    yield Comparison(
        what,
        "URB/s",
        tuple(each.urbs_s for each in ours),
        tuple(each.urbs_s for each in reference),
        AGAINST,
        row.target,
    )
    yield Comparison(
        f"{what}: CPU of the server",
        "us/URB",
        tuple(each.server_cpu_us for each in ours),
        tuple(each.server_cpu_us for each in reference),
        AGAINST,
        direction="at most",
    )
