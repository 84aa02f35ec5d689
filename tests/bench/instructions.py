"""Instructions that a server spends for one URB, counted by callgrind.  Runs in the bench.

Timings differ from run to run; these counts hardly do, on any x86-64 machine with the same compiler.  They
are those of the process alone: what the kernel does for its system calls is not in them.

The client works in lockstep: it sends `depth` URBs at once and reads all replies before it sends the next.
So every batch is a whole one, whatever the speed of the server, which runs some fifty times slower here.

With libusb, the load generator is the client.  What a connection costs is the same whatever is done on it, so
an URB costs what a longer run costs more than a shorter one.
"""

import contextlib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench import callgrind, over_usbfs
from tests.bench.over_usbfs import Side
from tests.bench.programs import TIMEOUT, Kind, Load, Server, null_server
from tests.bench.pump_alone import DEVICE
from tests.bench.result import Comparison
from tests.urb import Submit, encode
from usbipd.protocol.constants import ST_OK, USB_DIR_IN, USBIP_DIR_IN, USBIP_DIR_OUT
from usbipd.protocol.op import encode_import_reply, encode_import_request

AGAINST: Final = "null server (batch)"
GET_DEVICE_DESCRIPTOR: Final = bytes([USB_DIR_IN, 6, 0, 1, 0, 0, 18, 0])
REPLY_HEADER: Final = 48
ROUNDS: Final = 200
SHORT, LONG = 1000, 3000
"""URBs of either run over libusb."""

LOADS: Final[tuple[tuple[str, Kind, int, int], ...]] = (
    ("control 18 B, depth 1", "control", 18, 1),
    ("control 18 B, depth 32", "control", 18, 32),
    ("bulk IN 512 B, depth 32", "bulk-in", 512, 32),
    ("bulk OUT 512 B, depth 32", "bulk-out", 512, 32),
)


def compare(work: Path) -> list[Comparison]:
    """Instructions for each URB, ours and the reference's; nothing varies, so one turn is enough."""
    watch = callgrind.watch(work)
    with _pump_alone(watch) as server:
        ours = _count_all(work, server)
    with null_server(work, wrapper=watch) as server:
        reference = _count_all(work, server)
    rows = [
        Comparison(f"{what}: instructions", "instr/URB", (ours[what],), (reference[what],), AGAINST)
        for what, *_ in LOADS
    ]
    over_usbfs.build(work)
    with over_usbfs.worker(work, watch) as side:
        ours = _count_with_libusb(work, side)
    with over_usbfs.loop(work, watch) as side:
        reference = _count_with_libusb(work, side)
    return rows + [
        Comparison(what, "instr/URB", (ours[what],), (reference[what],), over_usbfs.AGAINST) for what in ours
    ]


def _count_with_libusb(work: Path, side: Side) -> dict[str, float]:
    """By name, the instructions for an URB over a usbfs that answers at once."""
    counts: dict[str, float] = {}
    pid = side.server.pid

    def run(depth: int, count: int) -> Counter[tuple[str, str]]:
        load = Load("control", 18, depth, TIMEOUT, count)
        return callgrind.by_library(
            callgrind.instructions_during(work, pid, lambda: over_usbfs.run_load(work, side, load))
        )

    over_usbfs.run_load(work, side, Load("control", 18, 1, TIMEOUT, SHORT))
    callgrind.start(pid)
    for depth in (1, 32):
        run(depth, SHORT)  # until the pools are warm
        short, long = run(depth, SHORT), run(depth, LONG)
        more = {key: (long[key] - short[key]) / (LONG - SHORT) for key in long}
        what = f"libusb over an instant usbfs, control 18 B, depth {depth}"
        counts[f"{what}: instructions"] = sum(cost for (_, called), cost in more.items() if not called)
        counts[f"{what}: of these libusb's and of libc for it"] = sum(
            cost
            for (caller, called), cost in more.items()
            if caller.startswith("libusb") and (not called or called.startswith("libc."))
        )
    return counts


@contextlib.contextmanager
def _pump_alone(wrapper: Sequence[str]) -> Iterator[Server]:
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-m", "tests.bench.pump_alone"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield Server(int(process.stdout.readline()), "1-1", process.pid)
    finally:
        process.wait(TIMEOUT)
        process.stdout.close()


def _count_all(work: Path, server: Server) -> dict[str, float]:
    """By name, the instructions for an URB of each load."""
    counts: dict[str, float] = {}
    seqnum = 1
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(encode_import_request(server.busid))
        connection.recv(len(encode_import_reply(ST_OK, DEVICE)), socket.MSG_WAITALL)
        callgrind.start(server.pid)
        for what, kind, size, depth in LOADS:
            seqnum = _lockstep(connection, kind, size, depth, seqnum)  # until the pools are warm
            batch = partial(_lockstep, connection, kind, size, depth, seqnum)
            seqnum += ROUNDS * depth
            dump = callgrind.instructions_during(work, server.pid, batch)
            counts[what] = callgrind.total(dump) / (ROUNDS * depth)
    return counts


def _lockstep(connection: socket.socket, kind: Kind, size: int, depth: int, seqnum: int) -> int:
    """ROUNDS batches of `depth` URBs, each answered before the next; the seqnum behind the last."""
    is_in = kind != "bulk-out"
    reply = bytearray(depth * (REPLY_HEADER + (size if is_in else 0)))
    for _ in range(ROUNDS):
        connection.sendall(b"".join(_submit(kind, size, seqnum + i) for i in range(depth)))
        seqnum += depth
        left = memoryview(reply)
        while left:
            got = connection.recv_into(left)
            if not got:
                sys.exit("the server under callgrind hung up")
            left = left[got:]
    return seqnum


def _submit(kind: Kind, size: int, seqnum: int) -> bytes:
    is_control = kind == "control"
    return encode(
        Submit(
            seqnum=seqnum,
            devid=DEVICE.devid,
            direction=USBIP_DIR_OUT if kind == "bulk-out" else USBIP_DIR_IN,
            ep=0 if is_control else 1,
            transfer_flags=0,
            transfer_buffer_length=size,
            number_of_packets=0,
            setup=GET_DEVICE_DESCRIPTOR if is_control else bytes(8),
            data=bytes(size) if kind == "bulk-out" else b"",
        )
    )
