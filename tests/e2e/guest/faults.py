"""Every fault of a session, each under load, against the stock client.  Runs in the guest.

After each fault: the client's program got the errors that a local device would return, the next client finds
the device in order, no process holds more than before, and a bystander that uses another device all the time
was not affected.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, network
from tests.e2e.guest.command import ask, check_doctor, listed, status_of, wait_for_state
from tests.e2e.guest.daemon import (
    EXTENSION,
    SERVER,
    Usage,
    check_usage,
    kill,
    processes,
    wait_until_ended,
    worker,
)
from tests.e2e.guest.gadget import LOOPBACK, SOURCE_SINK, Gadget
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import PORT, Usbipd, is_listening
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.traffic import (
    MESSAGE,
    DeafClient,
    Echo,
    Loop,
    echo_in_child,
    read_within,
    source_pattern,
)
from tests.e2e.guest.usb import UsbDevice, wait_for_driver
from tests.e2e.guest.usbfs import BULK, INTERRUPT, Urb, UsbFile
from usbipd.simulated.keyboard import INTERRUPT_IN
from usbipd.simulated.loopback import LOOPBACK_IN, LOOPBACK_OUT, SOURCE_IN

KIB: Final = 1024
MIB: Final = 1024 * KIB
DEPTH: Final = 16
"""URBs in each direction that are in flight when something happens."""
SPARE_MEMORY, SPARE_THREADS = 2048, 3
"""KiB and threads by which a process may grow: less than a leak at each fault would add.  Python's allocator
takes a MiB at a time, asyncio's pool in the extension adds a thread under load."""
BUDGET: Final = 64 * MIB  # transfer_budget of usbipd.toml

SCENARIO: Final = Scenario()
step = SCENARIO.step

# ---- the devices -------------------------------------------------------------------------------------------

LOOPBACK_ID, SOURCE_ID = "1d6b:0a0a", "1d6b:0a0b"
SIMULATED_LOOP: Final = Loop(1, LOOPBACK_IN, LOOPBACK_OUT)


class World:
    """State passed between steps."""

    daemon: Usbipd
    gadget: Gadget  # a real loopback device
    real: str  # its busid on this host
    loop: Loop
    source: str  # the busid of a real source
    simulated: list[str]  # busids of simulated loopback devices: the bystander's, and one for others
    keyboard: str
    bystander: Echo
    bystanders: UsbDevice  # on the client
    usage: dict[str, Usage]
    deaf: dict[str, DeafClient]  # by busid of the device
    deaf_since: float
    far: list[UsbDevice]  # the devices of the vanishing client, on that client


WORLD: Final = World()


@step()
def devices_are_shared() -> None:
    WORLD.daemon = Usbipd(
        *("--listen", "0.0.0.0", "--real-devices", "--simulate", "loopback,loopback,keyboard")
    )
    WORLD.daemon.start()
    _find_simulated()
    WORLD.gadget = Gadget(LOOPBACK, hardware_id=LOOPBACK_ID, product="Loopback")
    source = Gadget(SOURCE_SINK, port=1, hardware_id=SOURCE_ID, product="Source")
    for gadget in (WORLD.gadget, source):
        gadget.plug()
        ask("bind", "--hardware-id", gadget.hardware_id)
    device = WORLD.gadget.wait_until_plugged()
    WORLD.real, WORLD.loop = device.busid, Loop.of_gadget(device)
    WORLD.source = source.wait_until_plugged().busid
    for busid in (WORLD.real, WORLD.source):
        wait_for_state(busid, "shared")


def _find_simulated() -> None:
    devices = [(each["product"], each["busid"]) for each in ask("list")["devices"] if each["simulated"]]
    WORLD.keyboard, *WORLD.simulated = [busid for _product, busid in sorted(devices)]


@step()
def bystander_works() -> None:
    _start_bystander()
    _measure()


def _start_bystander() -> None:
    WORLD.bystanders = client.attach(WORLD.simulated[0])
    WORLD.bystander = Echo(WORLD.bystanders, SIMULATED_LOOP, depth=2, pause=0.02)
    WORLD.bystander.start()


def _measure() -> None:
    """Record the usage of each process after a warm-up."""
    for busid in (WORLD.real, WORLD.simulated[1]):  # everything grows to its final size
        for _ in range(2):
            attached, echo = _attach_and_echo(busid)
            echo.wait_for(4 * DEPTH)
            echo.stop()
            client.detach(attached)
            wait_for_state(busid, "shared")
    WORLD.bystander.wait_for(4)
    WORLD.usage = {name: Usage.of(pid) for name, pid in processes(WORLD.daemon)}


def _loop_of(busid: str) -> Loop:
    return WORLD.loop if busid == WORLD.real else SIMULATED_LOOP


def _attach_and_echo(busid: str) -> tuple[UsbDevice, Echo]:
    """Attach the device and run a program of the stock client on it."""
    attached = client.attach(busid)
    echo = Echo(attached, _loop_of(busid), depth=DEPTH)
    echo.start()
    echo.wait_for(2 * DEPTH)
    return attached, echo


def _check_all_well(*busids: str) -> None:
    """The next client gets correct data, the bystander continues, and nothing is left over."""
    for busid in busids:
        wait_for_state(busid, "shared")
        attached, echo = _attach_and_echo(busid)
        echo.stop()
        client.detach(attached)
        wait_for_state(busid, "shared")
    WORLD.bystander.wait_for(4)
    _check_usage(EXTENSION, SERVER, worker(WORLD.simulated[0]), *map(worker, busids))


def _check_usage(*names: str) -> None:
    before = {name: WORLD.usage[name] for name in names}
    check_usage(WORLD.daemon, before, SPARE_MEMORY, SPARE_THREADS)


def _in_flight(busid: str) -> int:
    return int(status_of(busid)["counters"]["in_flight"])


def _last_end(busid: str) -> str:
    """Why the last client of a device was detached, from the history."""
    entries = ask("history", "--limit", "1000")["entries"]  # newest first
    return next(each["reason"] for each in entries if (each["busid"], each["event"]) == (busid, "detached"))


# ---- a client that reads nothing for half a minute ---------------------------------------------------------

DEAF_SECONDS: Final = 30.0


@step("deaf")
def two_clients_stop_reading() -> None:
    """With more data in flight than the buffers of both sides hold.  Other faults happen meanwhile."""
    WORLD.deaf = {busid: DeafClient(busid) for busid in (WORLD.simulated[1], WORLD.source)}
    for busid, deaf in WORLD.deaf.items():
        wait_for(f"all URBs of {busid} to end", lambda busid=busid: _in_flight(busid) == 0)  # type: ignore[misc]
        urbs = status_of(busid)["counters"]["urbs"]
        check(urbs >= deaf.urbs, f"only {urbs} of {deaf.urbs} URBs have ended")
    WORLD.deaf_since = time.monotonic()


# ---- the client's program ----------------------------------------------------------------------------------


@step("program")
def program_is_killed_and_another_uses_the_same_attachment() -> None:
    attached = client.attach(WORLD.real)
    pid = echo_in_child(attached, WORLD.loop, DEPTH, 4 * DEPTH)
    wait_for("URBs in flight", lambda: _in_flight(WORLD.real) >= DEPTH)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for("all URBs to end", lambda: _in_flight(WORLD.real) == 0)
    check(status_of(WORLD.real)["state"] == "attached", "the device is no longer attached")
    with UsbFile(attached, [WORLD.loop.interface]) as file:  # its data are still in the device
        while (urb := read_within(file, WORLD.loop.read, MESSAGE, 1.0)).status == 0:
            pass
        check(urb.status == -errno.ENOENT, f"an unlinked URB ended with {urb.status}")
    echo = Echo(attached, WORLD.loop, depth=DEPTH)
    echo.start()
    echo.wait_for(2 * DEPTH)
    echo.stop()
    client.detach(attached)
    _check_all_well(WORLD.real)


@step("program")
def client_detaches_under_load() -> None:
    attached, echo = _attach_and_echo(WORLD.real)
    client.detach(attached)
    echo.check_lost()
    check(_last_end(WORLD.real) == "the client closed the connection", _last_end(WORLD.real))
    _check_all_well(WORLD.real)


# ---- the connection ----------------------------------------------------------------------------------------


@step("connection")
def connection_is_reset() -> None:
    """By either side; the side whose socket is destroyed notices first."""
    for end, reason in (
        ("client's", "Connection reset by peer"),
        ("worker's", "Software caused connection abort"),
    ):
        attached, echo = _attach_and_echo(WORLD.real)
        _address, port = str(status_of(WORLD.real)["client"]).rsplit(":", 1)
        where = (f"sport = :{port}", f"dport = :{PORT}")
        if end == "worker's":
            where = (f"sport = :{PORT}", f"dport = :{port}")
        run("ss", "-K", "-t", "-n", "state", "established", f"( {' and '.join(where)} )")
        client.wait_until_gone(attached)
        echo.check_lost()
        wait_for_state(WORLD.real, "shared")
        found = _last_end(WORLD.real)
        check(found == reason, f"the {end} socket was destroyed; the history has: {found}")
        _check_all_well(WORLD.real)


@step("deaf")
def deaf_clients_resume_and_have_lost_nothing() -> None:
    left = WORLD.deaf_since + DEAF_SECONDS - time.monotonic()
    print(f"they stay deaf for another {max(0, left):.0f} s", flush=True)
    time.sleep(max(0, left))
    for busid, deaf in WORLD.deaf.items():
        memory = Usage.of(dict(processes(WORLD.daemon))[worker(busid)]).memory
        waiting = (memory - WORLD.usage[worker(busid)].memory) * KIB
        print(f"{waiting} bytes are queued in the worker of {busid}", flush=True)
        check(
            deaf.asked // 2 < waiting < BUDGET, f"{waiting} bytes are queued for a client that does not read"
        )
        deaf.read_on()
        wait_for_state(busid, "shared")
    WORLD.bystander.wait_for(4)
    _check_usage(*WORLD.usage)


# ---- the device --------------------------------------------------------------------------------------------


@step("device")
def device_is_unplugged_in_the_middle_of_transfers() -> None:
    attached, echo = _attach_and_echo(WORLD.real)
    WORLD.gadget.unplug()
    client.wait_until_gone(attached)
    echo.check_lost("ENODEV", "EPROTO")
    wait_for("no device in the list", lambda: listed(WORLD.real) is None)
    WORLD.bystander.wait_for(4)
    WORLD.gadget.plug()
    _check_all_well(WORLD.real)


USB_REQ_SET_FEATURE: Final = 3  # USB 2.0, table 9-4
USB_ENDPOINT_HALT: Final = 0  # table 9-6
VENDOR: Final = 0x40  # table 9-2: vendor request to the device
TO_ENDPOINT: Final = 0x02
TEXT: Final = b"usbipd" * 100  # not a multiple of the packet size


@step("device")
def device_that_stalls_babbles_or_never_answers() -> None:
    attached, loop = client.attach(WORLD.real), WORLD.loop
    with UsbFile(attached, [loop.interface]) as file:
        file.control(VENDOR, 0x77).check(-errno.EPIPE)
        file.control(TO_ENDPOINT, USB_REQ_SET_FEATURE, USB_ENDPOINT_HALT, loop.read).check(0)
        file.run(Urb(BULK, loop.read, length=MESSAGE)).check(-errno.EPIPE)
        file.clear_halt(loop.read)
        file.run(Urb(BULK, loop.write, TEXT)).check(0)
        file.run(Urb(BULK, loop.read, length=100)).check(-errno.EOVERFLOW)
        read_within(file, loop.read, MESSAGE, 1.0).check(-errno.ENOENT)
        urbs = [Urb(BULK, loop.read, length=MESSAGE) for _ in range(DEPTH)]
        file.submit(*urbs)
        for urb in reversed(urbs):
            check(file.discard(urb), "a URB has ended although the device had no data")
        for _ in urbs:
            file.reap().check(-errno.ENOENT)
        file.submit(Urb(BULK, loop.write, TEXT), Urb(BULK, loop.read, length=MESSAGE))
        read = next(urb for urb in (file.reap(), file.reap()) if urb.endpoint == loop.read)
        check(read.data == TEXT, f"afterwards it returns {read.data!r:.60}")
    client.detach(attached)
    _check_all_well(WORLD.real)


@step("device")
def simulated_device_stalls_and_babbles() -> None:
    attached = client.attach(WORLD.keyboard)
    wait_for_driver(attached, "usbhid")
    Path("/sys/bus/usb/drivers/usbhid/unbind").write_text(f"{attached.busid}:1.0")
    with UsbFile(attached, [0]) as file:
        file.control(VENDOR, 0x77).check(-errno.EPIPE)
        file.run(Urb(INTERRUPT, INTERRUPT_IN, length=4)).check(-errno.EOVERFLOW)  # a report has 8 bytes
        report = file.run(Urb(INTERRUPT, INTERRUPT_IN, length=8))
        check(report.status == 0 and report.actual_length == 8, "no report afterwards")
    client.detach(attached)
    wait_for_state(WORLD.keyboard, "shared")


# ---- our processes -----------------------------------------------------------------------------------------


@step("processes")
def worker_is_killed_under_load() -> None:
    attached, echo = _attach_and_echo(WORLD.real)
    _kill(worker(WORLD.real))
    client.wait_until_gone(attached)
    echo.check_lost()
    _check_all_well(WORLD.real)


@step("processes")
def server_is_killed_under_load() -> None:
    attached, echo = _attach_and_echo(WORLD.real)
    _kill(SERVER)
    echo.wait_for(2 * DEPTH)
    wait_for("another server", lambda: is_listening() and SERVER in dict(processes(WORLD.daemon)))
    echo.wait_for(2 * DEPTH)
    echo.stop()
    client.detach(attached)
    _check_all_well(WORLD.real)


def _kill(name: str) -> None:
    pid = dict(processes(WORLD.daemon))[name]
    kill([pid])
    wait_until_ended([pid])


@step("extension")
def extension_is_killed_under_load() -> None:
    with _all_clients_disconnected():
        pid = WORLD.daemon.process.pid
        kill([pid])
        WORLD.daemon.process.wait()
        wait_for("its children to end", lambda: not processes(WORLD.daemon))
        WORLD.daemon.start()
    _check_all_well(WORLD.real)
    _check_usage(*WORLD.usage)


LOST_CLIENT_TIMEOUT: Final = 10
MANY: Final = 10
"""Simulated loopback devices.  vhci-hcd has 15 ports in total; each device is a process that takes seconds to
start here."""


@step("extension")
def extension_is_restarted_under_load() -> None:
    """With another configuration for the next steps: many devices, and a shorter timeout."""
    with _all_clients_disconnected():
        WORLD.daemon.stop()
        config = Path("/run/faults.toml")
        config.write_text(f"[limits]\nlost_client_timeout = {LOST_CLIENT_TIMEOUT}\n")
        WORLD.daemon = Usbipd(
            *("--listen", "0.0.0.0", "--real-devices", "--config", str(config)),
            *("--simulate", ",".join([*["loopback"] * MANY, "keyboard"])),
        )
        WORLD.daemon.start()
        _find_simulated()
    _measure()
    _check_all_well(WORLD.real)


@contextmanager
def _all_clients_disconnected() -> Iterator[None]:
    attached, echo = _attach_and_echo(WORLD.real)
    yield
    echo.check_lost()
    WORLD.bystander.check_lost()
    for device in (attached, WORLD.bystanders):
        client.wait_until_gone(device)
    wait_for_state(WORLD.simulated[0], "shared")
    _start_bystander()


# ---- a client that vanishes --------------------------------------------------------------------------------

LOST: Final = ("Connection timed out", "No route to host")
"""The kernel's errors for a lost client; the latter after another query of its MAC address."""


@step("vanish")
def client_on_another_machine_attaches() -> None:
    network.connect()
    WORLD.far = []
    for busid in (WORLD.real, WORLD.keyboard):
        WORLD.far.append(client.attach(busid, server=network.NEAR, via=network.ELSEWHERE))
        check(
            str(status_of(busid)["client"]).startswith(network.FAR),
            f"{busid} is used by {status_of(busid)['client']}",
        )
    before = status_of(WORLD.keyboard)["counters"]["urbs"]
    wait_for("the keyboard to type", lambda: status_of(WORLD.keyboard)["counters"]["urbs"] > before)


@step("vanish")
def vanished_client_loses_its_devices() -> None:
    """One device is idle, the other keeps typing."""
    start = time.monotonic()
    network.disconnect()
    for busid in (WORLD.real, WORLD.keyboard):
        wait_for_state(busid, "shared")
        print(f"{busid} after {time.monotonic() - start:.1f} s: {_last_end(busid)}", flush=True)
        check(_last_end(busid) in LOST, f"the history has: {_last_end(busid)}")
    for device in WORLD.far:
        client.detach(device)
    _check_all_well(WORLD.real)


# ---- many devices ------------------------------------------------------------------------------------------


@step("many")
def thirteen_devices_move_data_at_once() -> None:
    """All devices: the bystander's, other simulated ones, and two real ones."""
    busids = [WORLD.real, *WORLD.simulated[1:]]
    attached = [client.attach(busid) for busid in (WORLD.source, WORLD.keyboard, *busids)]
    echoes = [
        Echo(device, _loop_of(busid), depth=2, pause=0.02)
        for device, busid in zip(attached[2:], busids, strict=True)
    ]
    for echo in echoes:
        echo.start()
    for echo in echoes:
        echo.wait_for(DEPTH)
    with UsbFile(attached[0], [0]) as file:
        check(
            file.run(Urb(BULK, SOURCE_IN, length=MESSAGE)).data == source_pattern(MESSAGE), "a wrong pattern"
        )
    states = [each["state"] for each in ask("list")["devices"]]
    check(states == ["attached"] * (MANY + 3), f"the devices are {states}")
    for echo in echoes:
        echo.stop()
    WORLD.bystander.wait_for(4)
    for device in attached:
        client.detach(device)
    _check_all_well(WORLD.real)


# ---- the end -----------------------------------------------------------------------------------------------


@step("end")
def doctor_finds_no_fault() -> None:
    check_doctor()


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    WORLD.bystander.stop()
    client.detach(WORLD.bystanders)
    wait_for_state(WORLD.simulated[0], "shared")
    ask("unbind", "--all")
    WORLD.daemon.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
