"""Lost clients, and clients that only seem lost: whole daemons, with the shortest timeout.

The kernel drops all packets for a lost client before TCP sees them: nothing is acknowledged and no probe is
answered, as if its machine were off.
"""

import ctypes
import socket
import struct
import sys
import time

import pytest

from tests.client import Client, Session
from tests.integration.conftest import ECHO_IN, NOTIFICATION_IN, StartDaemon
from tests.integration.daemon import Daemon
from tests.integration.test_processes import echo
from usbipd.simulated.loopback import SOURCE_IN

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="socket filters are Linux's")

TIMEOUT = 10
CONFIG = f"[limits]\nlost_client_timeout = {TIMEOUT}\n"
REPORT_IN = 0x81
"""The endpoint of the keyboard, which types automatically."""

SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
BPF_RET_NOTHING = struct.pack("HBBI", 0x06, 0, 0, 0)  # include/uapi/linux/bpf_common.h: BPF_RET | BPF_K, 0


def drop_all_that_comes(connection: socket.socket) -> None:
    program = ctypes.create_string_buffer(BPF_RET_NOTHING, len(BPF_RET_NOTHING))
    fprog = struct.pack("HP", 1, ctypes.addressof(program))  # include/uapi/linux/filter.h, struct sock_fprog
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def may_filter() -> bool:
    """Some kernels allow it only for root."""
    with socket.socket() as connection:
        try:
            drop_all_that_comes(connection)
        except PermissionError:
            return False
    return True


def vanish(session: Session) -> None:
    """From now on the client neither receives nor sends."""
    drop_all_that_comes(session.connection)


def close_window(session: Session) -> list[int]:
    """Request more than both sides can buffer, and read nothing; returns the seqnums."""
    return [session.submit(SOURCE_IN, length=1 << 20) for _ in range(32)]


def reason_of_end(daemon: Daemon, busid: str) -> str:
    line = daemon.log.wait_for(f"{busid} detached: ")
    return line.partition(" detached: ")[2]


@pytest.mark.skipif(
    sys.platform.startswith("linux") and not may_filter(), reason="this kernel lets only root filter a socket"
)
@pytest.mark.rule("lost-client", "tcp-options")
def test_lost_clients_are_disconnected_and_live_ones_are_not(start_daemon: StartDaemon) -> None:
    """In each state of a connection, all at the same time."""
    daemon = start_daemon("serial,serial,keyboard,loopback,loopback", CONFIG)
    client = Client(daemon.host, daemon.port)
    idle_busid, busy_busid = daemon.busid("serial"), daemon.busid("keyboard")
    closed_busid, deaf_busid = daemon.busid("loopback"), daemon.busid("loopback", 1)
    living = client.import_device(daemon.busid("serial", 1))
    waiting = living.submit(NOTIFICATION_IN, length=16, interval=8)  # never completes

    idle = client.import_device(idle_busid)
    idle.submit(ECHO_IN, length=512)
    busy = client.import_device(busy_busid)
    reports = [busy.submit(REPORT_IN, length=8, interval=1) for _ in range(64)]
    busy.wait(reports[0])
    closed = client.import_device(closed_busid)
    close_window(closed)
    deaf = client.import_device(deaf_busid)
    close_window(deaf)
    start = time.monotonic()
    for session in (idle, busy, closed):
        vanish(session)

    for busid in (idle_busid, busy_busid, closed_busid, deaf_busid):
        assert reason_of_end(daemon, busid) == "Connection timed out"
        daemon.wait_for_state(busid, "shared")
    assert time.monotonic() - start >= TIMEOUT / 2
    echo(living, b"I have said nothing for longer than that")
    assert living.unlink(waiting) == -104
    with client.import_device(idle_busid) as again:
        echo(again, b"the next client")
    with client.import_device(closed_busid) as again:
        assert len(again.bulk_in(SOURCE_IN, 1 << 20)) == 1 << 20
    for session in (living, idle, busy, closed, deaf):
        session.close()


@pytest.mark.rule("lost-client")
def test_a_client_that_does_not_read_for_a_while_loses_nothing(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback", CONFIG)
    pattern = bytes(index % 512 % 63 for index in range(1 << 20))
    with Client(daemon.host, daemon.port).import_device(daemon.busid("loopback")) as session:
        seqnums = close_window(session)
        time.sleep(TIMEOUT / 2)  # the fault itself: nothing to wait for
        for seqnum in seqnums:
            assert session.wait_submit(seqnum).data == pattern
