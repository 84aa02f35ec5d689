"""Ours and usbip-host on the same devices, in turns in one boot.  Runs in the guest.

Two kinds of device: QEMU's USB stick, which the stock client attaches, and reads and writes without a cache;
and the kernel's source/sink gadget, whose server the load generator asks directly: the stock client and a
program on top of it would cost more than the server that is measured.

The figures go to figures.json in the job directory: a list of samples by row and server.
"""

import json
import mmap
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.guest.servers import Kernel, Ours, Side
from tests.e2e.guest import client
from tests.e2e.guest.gadget import Function, Gadget
from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import JOB, run, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver, wait_until_plugged
from usbipd.protocol.constants import USB_DT_DEVICE_SIZE, USB_ENDPOINT_XFER_BULK
from usbipd.usb.descriptors import parse_configuration

KIB: Final = 1024
MIB: Final = 1024 * KIB

CLOCK: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
CONTROLLER: Final = "0000:00:10.0"  # where in_vm.py puts it
STICK: Final = "46f4:0001"  # QEMU, hw/usb/dev-storage-classic.c
SOURCE_SINK: Final = "0525:a4a0"  # gadget zero, drivers/usb/gadget/legacy/zero.c

READ: Final = 64 * MIB
WRITTEN: Final = 32 * MIB
SMALL_READS: Final = 1000
DEPTH: Final = 16
CONTROLS: Final = 2000
BULK_URBS: Final = {512: 8000, 4 * KIB: 6000, 16 * KIB: 3000, 64 * KIB: 1000, 256 * KIB: 400}
"""How many of each size."""

BUFFER: Final = mmap.mmap(-1, MIB)
"""One for all: where its pages lie decides into how many commands the client's kernel splits a MiB."""

Figures = defaultdict[str, defaultdict[str, list[float]]]


def main(load: str, turns: int) -> int:
    """`load` is the path of the load generator."""
    # The clock of a processor: to read the HPET, which is right on a busy host too, costs what no machine has
    # to pay.  If the TSC is wrong, it is so for both sides.
    CLOCK.write_text("tsc")
    run("modprobe", "xhci-pci")
    sides: list[Side] = [Ours(), Kernel()]
    for side in sides:
        side.server.start()
    stick = wait_until_plugged(CONTROLLER, STICK)
    wait_for_driver(stick, "usb-storage")
    # pattern 2: it neither fills nor looks at what it moves
    function = Function("SourceSink", {"pattern": "2", "bulk_buflen": str(16 * KIB)})
    slow = Gadget(function, port=0, hardware_id=SOURCE_SINK)
    fast = Gadget(function, port=1, hardware_id=SOURCE_SINK, speed="super-speed")
    for gadget in (slow, fast):
        gadget.plug()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for _ in range(turns):
        for side in sides:
            with side.lent(stick):
                _use_stick(side, stick, figures)
            wait_for_driver(stick, "usb-storage")
            # At super speed a packet has 1 KiB: a source that fills it babbles when 512 bytes are asked for.
            device = slow.wait_until_plugged()
            with side.lent(device):
                _load(load, side, device, figures, (512,), with_controls=True)
            device = fast.wait_until_plugged()
            with side.lent(device):
                _load(load, side, device, figures, [size for size in BULK_URBS if size > 512])
    (JOB / "figures.json").write_text(json.dumps(figures))
    for side in sides:
        side.server.stop()
    return 0


# ---- the stick ---------------------------------------------------------------------------------------------


def _use_stick(side: Side, stick: UsbDevice, figures: Figures) -> None:
    there = client.attach(stick.busid, STICK, tcp_port=side.tcp_port)
    node = wait_for("a block device of the stick", there.block_device)
    disk = os.open(node, os.O_RDWR | os.O_DIRECT)
    try:
        _transfer(disk, MIB, 4 * MIB)  # not measured: pools fill, code is translated
        commands = _commands(node)
        took, busy = _transfer(disk, MIB, READ)
        _note(figures, side, "read-commands", (_commands(node) - commands) / (READ / MIB))
        _note(figures, side, "read", READ / took / 1e6)
        _note(figures, side, "read-cpu", busy)
        took, _busy = _transfer(disk, MIB, WRITTEN, write=True)
        _note(figures, side, "write", WRITTEN / took / 1e6)
        _transfer(disk, 4 * KIB, 64 * 4 * KIB)
        took, _busy = _transfer(disk, 4 * KIB, SMALL_READS * 4 * KIB)
        _note(figures, side, "small-reads", SMALL_READS / took)
    finally:
        os.close(disk)
    client.detach(there)


def _transfer(disk: int, size: int, total: int, *, write: bool = False) -> tuple[float, float]:
    """Seconds that it took, and for how many of them the processor was busy."""
    call = os.pwritev if write else os.preadv
    buffer = memoryview(BUFFER)[:size]
    idle, start = _idle(), time.monotonic()
    for offset in range(0, total, size):
        if call(disk, [buffer], offset) != size:
            raise StepError(f"the stick moved less than {size} bytes at {offset}")
    took = time.monotonic() - start
    return took, took - (_idle() - idle)


def _commands(node: Path) -> int:
    """Reads that the disk has completed.  Source: Documentation/block/stat.rst."""
    return int((Path("/sys/class/block") / node.name / "stat").read_text().split()[0])


def _idle() -> float:
    """Seconds in which the only processor had nothing to do.  Source: Documentation/filesystems/proc.rst."""
    _cpu, _user, _nice, _system, idle, iowait, *_ = Path("/proc/stat").read_text().split()
    return (int(idle) + int(iowait)) / os.sysconf("SC_CLK_TCK")


# ---- source and sink ---------------------------------------------------------------------------------------


def _load(
    load: str,
    side: Side,
    device: UsbDevice,
    figures: Figures,
    sizes: Sequence[int],
    *,
    with_controls: bool = False,
) -> None:
    ends = {
        "bulk-in" if each.bEndpointAddress & 0x80 else "bulk-out": each.bEndpointAddress & 0x0F
        for each in parse_configuration(device.descriptors[USB_DT_DEVICE_SIZE:]).endpoints
        if each.bmAttributes & 3 == USB_ENDPOINT_XFER_BULK
    }

    def rate(kind: str, size: int, depth: int, urbs: int) -> float:
        side.wait_until_free(device)
        line = run(
            *(load, "-p", str(side.tcp_port), "-b", device.busid, "-t", kind, "-e", str(ends.get(kind, 0))),
            *("-s", str(size), "-q", str(depth), "-w", str(4 * depth), "-n", str(urbs), "-T", "60"),
        )
        values = line.split()
        check(values[13:] == ["0", "0"], f"URBs failed or were short: {line}")
        return float(values[6])  # urbs_s of usbip_load -h

    if with_controls:
        _note(figures, side, "control", rate("control", 18, 1, CONTROLS))
    for size in sizes:
        for kind in ends:
            _note(figures, side, f"{kind} {size}", rate(kind, size, DEPTH, BULK_URBS[size]))


def _note(figures: Figures, side: Side, row: str, sample: float) -> None:
    figures[row][side.name].append(sample)
    print(f"{row}: {sample:.4g} by {side.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
