"""The daemon as a service: stops, kills, damaged stores, and changes of its log.

Runs in the guest.
"""

import os
import random
import re
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, call, wait_for_state
from tests.e2e.guest.daemon import EXTENSION, SERVER, kill, processes, wait_until_ended, worker
from tests.e2e.guest.gadget import Gadget, disk
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import Usbipd
from tests.e2e.guest.system import JOB, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver

MIB: Final = 1024 * 1024
DISK_SIZE: Final = 16 * MIB
SERIAL: Final = "E2ESECRET"
STORE: Final = Path("/var/lib/usbipd/usbipd.sqlite")

SCENARIO: Final = Scenario()
step = SCENARIO.step


class World:
    """State passed between steps."""

    daemon: Usbipd
    device: UsbDevice
    bindings: list[dict[str, Any]]


WORLD: Final = World()


@step()
def two_devices_are_bound() -> None:
    """One present and one absent device."""
    stick = Gadget(disk(Path("/run/stick.img"), DISK_SIZE), serial=SERIAL)
    stick.plug()
    WORLD.device = stick.wait_until_plugged()
    wait_for_driver(WORLD.device, "usb-storage")
    WORLD.daemon = Usbipd(log_level="error")
    WORLD.daemon.start()
    ask("bind", "--busid", WORLD.device.busid, "--allow", "127.0.0.0/8")
    ask("bind", "--hardware-id", "1d6b:0a0a", "--serial", "elsewhere")
    WORLD.bindings = ask("list")["bindings"]
    check(len(WORLD.bindings) == 2, f"the bindings are {WORLD.bindings}")
    _check_as_before()


# ---- logs --------------------------------------------------------------------------------------------------

LINE: Final = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR) (extension|server|worker)\[\d+\]")
LAST_WORDS: Final = "the extension closed the channel"
"""A worker's message when its extension was killed."""


@step("logs")
def signals_change_the_log_level_of_all_processes() -> None:
    check(_who_logs() == set(), "with --log-level error there are log lines")
    os.kill(WORLD.daemon.process.pid, signal.SIGUSR1)
    wait_for("the extension to log more", lambda: not _is_silent())
    who = _who_logs()
    expected = {("DEBUG", EXTENSION), ("INFO", SERVER), ("DEBUG", "worker")}
    check(expected <= who, f"after SIGUSR1 the log has {who}")
    os.kill(WORLD.daemon.process.pid, signal.SIGUSR2)
    wait_for("the extension to log less", _is_silent)
    who = _who_logs()
    check(who == set(), f"after SIGUSR2 the log still has {who}")


def _is_silent() -> bool:
    """Whether the extension logs no requests; other processes change level at the same time."""
    before = len(WORLD.daemon.log())
    ask("list")
    return len(WORLD.daemon.log()) == before


def _who_logs() -> set[tuple[str, str]]:
    """Level and role of every log line of an attach and a detach."""
    before = len(WORLD.daemon.log())
    _use_device()
    return set(LINE.findall(WORLD.daemon.log()[before:]))


def _use_device() -> None:
    client.detach(client.attach(WORLD.device.busid))
    wait_for_state(WORLD.device.busid, "shared")


# ---- starts ------------------------------------------------------------------------------------------------


@step("starts")
def bindings_survive_a_stop() -> None:
    WORLD.daemon.stop()
    wait_for_driver(WORLD.device, "usb-storage")
    _start_again()


@step("starts")
def bindings_survive_kill_9() -> None:
    _kill_all()
    wait_for("the device to be released", lambda: WORLD.device.driver() is None)
    _start_again()


@step("starts")
def history_outlives_the_daemon() -> None:
    events = [entry["event"] for entry in ask("history", "--limit", "1000")["entries"]]
    counts = {event: events.count(event) for event in ("started", "stopped", "bound")}
    check(counts == {"started": 3, "stopped": 1, "bound": 2}, f"the history has {events}")


@step("starts")
def damaged_store_is_replaced_by_its_last_good_copy() -> None:
    WORLD.daemon.stop()
    with _damage("damaged"), STORE.open("r+b") as file:
        file.seek(100)  # behind the header
        file.write(random.randbytes(STORE.stat().st_size - 100))


@step("starts")
def truncated_store_is_replaced_by_its_last_good_copy() -> None:
    WORLD.daemon.stop()
    with _damage("truncated"):
        os.truncate(STORE, STORE.stat().st_size // 2)


@step("starts")
def newer_store_is_replaced_by_its_last_good_copy() -> None:
    WORLD.daemon.stop()
    with _damage("newer"):
        connection = sqlite3.connect(STORE)
        connection.execute("PRAGMA user_version = 999")
        connection.close()


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Damage the store in the block; the daemon must start normally, keep the store aside, and report it."""
    kept = set(STORE.parent.iterdir())
    yield
    _start_again()
    aside = set(STORE.parent.iterdir()) - kept
    print(f"{what}: {sorted(path.name for path in aside)}")
    check(bool(aside), f"the {what} store was not kept")
    words = [f"{each['message']} {each['steps']}" for each in _complaints()]
    check(any(path.name in word for path in aside for word in words), f"doctor does not name it: {words}")


def _complaints() -> list[dict[str, Any]]:
    checks = call("doctor", "--json").document["checks"]
    return [each for each in checks if each["state"] != "ok"]


def _kill_all() -> None:
    pids = [pid for _name, pid in processes(WORLD.daemon)]
    kill(pids)
    wait_until_ended(pids)


def _start_again() -> None:
    """Everything must be as before, without a command."""
    WORLD.daemon.start()
    _check_as_before()
    _use_device()


def _check_as_before() -> None:
    wait_for_state(WORLD.device.busid, "shared")
    wait_for_driver(WORLD.device, "usbfs")
    bindings = ask("list")["bindings"]
    check(bindings == WORLD.bindings, f"the bindings are {bindings}, not {WORLD.bindings}")
    names = [name for name, _pid in processes(WORLD.daemon)]
    expected = sorted([EXTENSION, SERVER, worker(WORLD.device.busid)])
    check(names == expected, f"the processes are {names}, not {expected}")


# ---- syslog ------------------------------------------------------------------------------------------------


@step("syslog")
def all_processes_log_to_syslog() -> None:
    WORLD.daemon.stop()
    with _syslog() as messages:
        WORLD.daemon = Usbipd("--log-to", "syslog", log_level="info")
        WORLD.daemon.start()
        _check_as_before()
        _use_device()
        who = {role for _level, role in LINE.findall("\n".join(messages))}
        check(who >= {EXTENSION, SERVER}, f"only {who} reach syslog")
        kill([pid for name, pid in processes(WORLD.daemon) if name == EXTENSION])
        wait_for("the worker's last words", lambda: any(LAST_WORDS in message for message in messages))
        WORLD.daemon.start()
        wait_for_state(WORLD.device.busid, "shared")
    log = WORLD.daemon.log()
    check(not LINE.search(log), f"with --log-to syslog there is on stderr: {log}")
    check(not any(SERIAL in message for message in messages), "the log at level info has a serial number")


@contextmanager
def _syslog() -> Iterator[list[str]]:
    """A syslog daemon: the messages it receives, also in syslog.log in the job directory."""
    messages: list[str] = []
    path = Path("/dev/log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(str(path))

        def read() -> None:
            with (JOB / "syslog.log").open("w", buffering=1) as log:
                while message := inbox.recv(65536):
                    messages.append(message.decode())
                    log.write(f"{messages[-1]}\n")

        reader = threading.Thread(target=read)
        reader.start()
        yield messages
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(path))
        reader.join()
    path.unlink()


@step("end")
def daemon_stops_and_leaves_nothing() -> None:
    ask("unbind", "--all")
    wait_for_driver(WORLD.device, "usb-storage")
    WORLD.daemon.stop()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
