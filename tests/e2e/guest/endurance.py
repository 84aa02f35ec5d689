"""Repeated failures of devices, clients and processes; nothing may be lost.  Runs in the guest.

The counts are arguments: few by default, many with `make soak`.  The same `--seed` makes the same choices, as
far as the machine behaves alike.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, listed, try_ask
from tests.e2e.guest.daemon import EXTENSION, SERVER, Usage, excess, kill, processes, wait_until_ended, worker
from tests.e2e.guest.disk import Disk, Writer
from tests.e2e.guest.gadget import Gadget, disk
from tests.e2e.guest.scenario import Scenario, StepError, check
from tests.e2e.guest.server import Usbipd, is_listening
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

MIB: Final = 1024 * 1024
DISK_SIZE: Final = 32 * MIB
BACK_AGAIN: Final = 180.0
"""Seconds until everything must be shared again: a start of the extension takes ten here, and a second
failure within a minute adds a pause."""
SPARE_MEMORY: Final = {EXTENSION: 4096}
"""KiB by which a process may grow, others by 1024.  Python's allocator takes memory by the MiB, glibc's
separately for each of the extension's eight threads, and both keep their peak; a leak of 4 KiB a round is
visible after a thousand rounds."""
SPARE_THREADS: Final = {EXTENSION: 6}
"""The size of asyncio's pool for blocking calls: it starts a thread when all others are busy."""

AT_REST: Final = 1.0
"""Seconds after a request until its connection is closed at both ends."""

SCENARIO: Final = Scenario()
step = SCENARIO.step


class World:
    """State passed between steps."""

    arguments: argparse.Namespace
    sticks: dict[str, Gadget]  # by busid on this host
    bindings: list[dict[str, Any]] | None = None  # as created


WORLD: Final = World()
DAEMON: Final = Usbipd()
DISK: Final = Disk(Path("/run/mnt"))
ACKNOWLEDGED: Final[dict[str, str]] = {}
"""The files that the first stick must have at the end."""


@step()
def two_sticks_are_bound() -> None:
    DAEMON.start()
    WORLD.sticks = {}
    for port, hardware_id in enumerate(("1d6b:0104", "1d6b:0105")):
        function = disk(Path(f"/run/stick{port}.img"), DISK_SIZE)
        stick = Gadget(function, port=port, hardware_id=hardware_id, serial=f"E2E{port}")
        stick.plug()
        device = stick.wait_until_plugged()
        wait_for_driver(device, "usb-storage")
        WORLD.sticks[device.busid] = stick
    _bind_both()
    WORLD.bindings = _wait_until_shared()
    check(len(WORLD.bindings) == 2, f"there are {len(WORLD.bindings)} bindings, not 2")


def _bind_both() -> None:
    """One by port, one by hardware id."""
    first, second = WORLD.sticks
    ask("bind", "--busid", first)
    ask("bind", "--hardware-id", WORLD.sticks[second].hardware_id)


def _unbind_both() -> None:
    """Each returns to its own driver."""
    ask("unbind", "--all")
    for busid in WORLD.sticks:
        wait_for_driver(UsbDevice(busid), "usb-storage")


# ---- kill -9 -----------------------------------------------------------------------------------------------

VICTIMS: Final = ("extension", "server", "a worker", "several", "all", "extension while it starts")


@step("kills")
def no_kill_loses_bindings_claims_or_data() -> None:
    choices = _choices("kills")
    busid = next(iter(WORLD.sticks))
    attached = client.attach(busid)
    DISK.make(attached)
    DISK.mount(attached)
    writer = Writer(DISK.mount_point, choices)
    writer.start()
    try:
        for number in range(1, WORLD.arguments.kills + 1):
            works = writer.wait_until_written(writer.written + choices.randint(1, 8))
            check(works, f"the disk failed before any kill: {writer.error}")
            time.sleep(choices.uniform(0.0, 0.3))  # so that kills are not always between two files
            start = time.monotonic()
            what, was_cut = _kill(choices, busid)
            if was_cut:
                attached = _use_again(attached, busid, writer)
            else:
                _wait_until_shared(attached_busid=busid)
                works = writer.wait_until_written(writer.written + 1)
                check(works, f"the disk failed though only {what} was killed: {writer.error}")
            seconds = time.monotonic() - start
            print(
                f"kill {number}/{WORLD.arguments.kills}: {what}: {'cut off, ' if was_cut else ''}"
                f"recovered after {seconds:.1f} s, {len(writer.acknowledged)} of {writer.written} files kept",
                flush=True,
            )
    finally:
        writer.stop()
    ACKNOWLEDGED.update(writer.acknowledged)
    DISK.check_files(ACKNOWLEDGED)
    DISK.unmount()
    client.detach(attached)


@step("kills")
def drivers_are_reattached_after_all_kills() -> None:
    """Also to a device whose last worker found it without a driver, since the previous worker was killed."""
    _unbind_both()
    _bind_both()
    _wait_until_shared()


def _kill(choices: random.Random, busid: str) -> tuple[str, bool]:
    """Kill something; returns what, and whether that disconnects the client of `busid`."""
    running = dict(processes(DAEMON))
    kind = choices.choice(VICTIMS)
    names = list(running)
    match kind:
        case "extension" | "server":
            names = [kind]
        case "a worker":
            names = [worker(choices.choice(list(WORLD.sticks)))]
        case "several":
            names = choices.sample(names, choices.randint(2, len(names)))
        case "all":
            choices.shuffle(names)
        case _:
            names = [EXTENSION]
    what = "while it starts the extension" if kind == VICTIMS[-1] else ", ".join(names)
    print(f"killing {what}", flush=True)
    kill(running[name] for name in names)
    wait_until_ended(running[name] for name in names)
    if EXTENSION in names:
        DAEMON.process.wait()
        DAEMON.launch()  # immediately, as a service manager does, whether or not the children have released
        if kind == VICTIMS[-1]:
            time.sleep(choices.uniform(0.0, 12.0))  # at a random point
            for name, pid in processes(DAEMON):
                if name == EXTENSION:
                    kill([pid])
            DAEMON.process.wait()
            DAEMON.launch()
    return what, EXTENSION in names or worker(busid) in names


def _use_again(attached: UsbDevice, busid: str, writer: Writer) -> UsbDevice:
    """The client loses its disk and attaches it again: acknowledged files must exist."""
    wait_for("the writer to notice the loss of the disk", lambda: not writer.works)
    DISK.unmount()
    client.wait_until_gone(attached)
    _wait_until_shared()
    attached = client.attach(busid)
    DISK.repair(attached)
    DISK.mount(attached)
    DISK.check_files(writer.acknowledged)
    writer.start()
    return attached


# ---- unplug and replug -------------------------------------------------------------------------------------


@step("replugs")
def device_is_claimed_again_after_each_replug() -> None:
    choices = _choices("replugs")
    for number in range(1, WORLD.arguments.replugs + 1):
        what = _replug(choices.choice(list(WORLD.sticks)), choices.random() < 0.5, choices.random() < 0.5)
        print(f"replug {number}/{WORLD.arguments.replugs}: {what}", flush=True)


def _replug(busid: str, is_attached: bool, immediately: bool) -> str:
    """Unplug a stick, attached or not, and replug it, immediately or later; returns a summary."""
    stick, number = WORLD.sticks[busid], UsbDevice(busid).number
    attached = client.attach(busid) if is_attached else None
    start = time.monotonic()
    stick.unplug()
    if attached is not None:
        client.wait_until_gone(attached)
    if not immediately:
        wait_for(f"no device {busid} in the list", lambda: listed(busid) is None)
    gone = time.monotonic() - start
    stick.plug()
    wait_for(f"another device at {busid}", lambda: UsbDevice(busid).number not in ("", number))
    _wait_until_shared()
    what = f"{busid}{', attached' if is_attached else ''}{', immediately' if immediately else ''}"
    return f"{what}: removed after {gone:.1f} s, shared again after {time.monotonic() - start - gone:.1f} s"


# ---- attach and detach -------------------------------------------------------------------------------------


@step("attaches")
def attaching_leaks_nothing() -> None:
    choices = _choices("attaches")
    for seconds in (0.0, 0.05, 0.3, 0.0):  # first everything grows to its final size
        for busid in WORLD.sticks:
            _attach_and_detach(busid, seconds)
    time.sleep(AT_REST)
    running = processes(DAEMON)
    before = {name: Usage.of(pid) for name, pid in running}
    for number in range(1, WORLD.arguments.attaches + 1):
        start = time.monotonic()
        seconds = choices.choice((0.0, choices.uniform(0.01, 0.5)))
        _attach_and_detach(choices.choice(list(WORLD.sticks)), seconds)
        memory = {name: Usage.of(pid).memory for name, pid in running}
        print(
            f"attach {number}/{WORLD.arguments.attaches}: {time.monotonic() - start:.1f} s, KiB {memory}",
            flush=True,
        )
    time.sleep(AT_REST)
    check(processes(DAEMON) == running, f"the processes were {running} and are {processes(DAEMON)}")
    problems = []
    for name, pid in running:
        was, now = before[name], Usage.of(pid)
        print(
            f"{name}: {len(was.descriptors)} descriptors, {was.threads} threads, {was.memory} KiB;"
            f" then {len(now.descriptors)}, {now.threads}, {now.memory} KiB",
            flush=True,
        )
        problems += excess(name, was, now, SPARE_MEMORY.get(name, 1024), SPARE_THREADS.get(name, 0))
    check(not problems, "; ".join(problems))


def _attach_and_detach(busid: str, seconds: float) -> None:
    """Read from the disk and detach it; or detach it after `seconds`, whatever usb-storage is doing."""
    attached = client.attach(busid)
    if seconds:
        time.sleep(seconds)
    else:
        with wait_for("a block device of the attached disk", attached.block_device).open("rb") as blocks:
            blocks.read(MIB)
    client.detach(attached)
    _wait_until_shared()


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def unbind_returns_both_to_their_driver() -> None:
    _unbind_both()
    check(ask("list")["bindings"] == [], "bindings are left after unbind --all")


@step("end")
def this_host_finds_all_files_on_its_disk() -> None:
    if WORLD.arguments.kills:
        DISK.mount(UsbDevice(next(iter(WORLD.sticks))))
        DISK.check_files(ACKNOWLEDGED)
        DISK.unmount()


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    DAEMON.stop()


def _choices(chain: str) -> random.Random:
    """The choices of one chain, independent of earlier chains."""
    return random.Random(f"{WORLD.arguments.seed} {chain}")


def _wait_until_shared(attached_busid: str | None = None) -> list[dict[str, Any]]:
    """Wait until every stick is shared and free, or attached if expected; returns the bindings.

    Each is held by its own worker, each of our processes exists exactly once, and the bindings are those of
    the start.
    """
    names = sorted([EXTENSION, SERVER, *map(worker, WORLD.sticks)])
    seen = ""

    def find() -> dict[str, Any] | None:
        nonlocal seen
        document, running = try_ask("list"), processes(DAEMON)
        devices = [] if document is None else document["devices"]
        sticks = {device["busid"]: device for device in devices if device["busid"] in WORLD.sticks}
        wrong = [
            (busid, device["state"], device["worker_pid"], device["error"])
            for busid, device in sticks.items()
            if device["state"] != ("attached" if busid == attached_busid else "shared")
            or (worker(busid), device["worker_pid"]) not in running
            or UsbDevice(busid).driver() != "usbfs"
        ]
        seen = f"{wrong} of {list(sticks)}; the processes {running}"
        is_right = len(sticks) == len(WORLD.sticks) and not wrong and [name for name, _ in running] == names
        return document if is_right and is_listening() else None

    try:
        document = wait_for("every stick to be shared", find, BACK_AGAIN)
    except StepError as error:
        raise StepError(f"{error}; wrong are {seen}") from None
    bindings = [_kept(binding) for binding in document["bindings"]]
    check(WORLD.bindings in (None, bindings), f"the bindings are {bindings}, not {WORLD.bindings}")
    return bindings


def _kept(binding: dict[str, Any]) -> dict[str, Any]:
    """The persistent part of a binding; the rest depends on the plugged devices and the time of the bind."""
    return {name: value for name, value in binding.items() if name not in ("devices", "created")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=8, help="rounds of kill -9 (%(default)s)")
    parser.add_argument("--replugs", type=int, default=6, help="rounds of unplugging (%(default)s)")
    parser.add_argument("--attaches", type=int, default=20, help="rounds of attach and detach (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    WORLD.arguments = parser.parse_args()
    print(f"--seed {WORLD.arguments.seed}", flush=True)
    sys.exit(SCENARIO.run())
