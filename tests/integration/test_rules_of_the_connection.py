"""The rules of the TCP connection: its options, its end, and what the next client finds."""

import ctypes
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.client import Client, Session
from tests.integration.conftest import Attach, StartDaemon
from tests.integration.daemon import Daemon
from tests.loopback import from_other_addresses
from usbipd.protocol.constants import (
    USB_DT_DEVICE,
    USB_RECIP_INTERFACE,
    USB_REQ_GET_DESCRIPTOR,
    USB_REQ_GET_INTERFACE,
    USB_REQ_SET_INTERFACE,
)

SOURCE_IN, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x82, 0x02

_SYS_PIDFD_GETFD: Final = 438  # Linux include/uapi/asm-generic/unistd.h, on every architecture


def borrow_socket(pid: int, client_port: int) -> socket.socket:
    """The daemon's end of the connection from `client_port`."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if not os.readlink(entry).startswith("socket:"):  # noqa: PTH115 - not a path
                continue
            descriptor = libc.syscall(_SYS_PIDFD_GETFD, process, int(entry.name), 0)
            if descriptor < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            borrowed = socket.socket(fileno=descriptor)
            if borrowed.family == socket.AF_INET and borrowed.getpeername()[1] == client_port:
                return borrowed
            borrowed.close()
    finally:
        os.close(process)
    raise AssertionError(f"process {pid} has no connection from port {client_port}")


@pytest.mark.rule("tcp-options")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets another process's socket be looked at")
def test_nodelay_and_keepalive_are_on(daemon: Daemon, attach: Attach) -> None:
    session = attach("loopback")
    session.bulk_in(SOURCE_IN, 64)  # now the worker has the socket
    client_port = session.connection.getsockname()[1]
    with borrow_socket(daemon.worker_pid(session.device.busid), client_port) as theirs:
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.rule("lost-client")
@pytest.mark.parametrize("abruptly", [False, True])
def test_a_client_that_leaves_frees_the_device(
    daemon: Daemon, client: Client, attach: Attach, abruptly: bool
) -> None:
    session = attach("loopback")
    for _ in range(10):
        session.submit(LOOPBACK_IN, length=512)
    session.bulk_in(SOURCE_IN, 64)
    busid = session.device.busid
    assert daemon.device(busid)["state"] == "attached"
    if abruptly:  # the connection is reset
        session.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    session.close()
    device = daemon.wait_for_state(busid, "shared")
    assert device["counters"]["in_flight"] == 0
    assert device["client"] is None
    with client.import_device(busid) as successor:
        assert len(successor.bulk_in(SOURCE_IN, 64)) == 64


@pytest.mark.rule("no-bus-reset")
def test_the_next_client_finds_the_device_as_after_power_on(attach: Attach) -> None:
    with attach("loopback") as session:
        session.bulk_out(LOOPBACK_OUT, b"of the last client")
    with attach("loopback") as session:
        session.bulk_out(LOOPBACK_OUT, b"of this client")
        assert session.bulk_in(LOOPBACK_IN, 512) == b"of this client"
    with attach("audio") as session:
        session.control_out(USB_RECIP_INTERFACE, USB_REQ_SET_INTERFACE, 1, 1)
    with attach("audio") as session:
        assert session.control_in(0x81, USB_REQ_GET_INTERFACE, 0, 1, length=1) == b"\x00"


@pytest.mark.rule("unplug-closes")
def test_a_device_that_leaves_closes_the_connection(start_daemon: StartDaemon) -> None:
    """To the client, the death of the worker looks like an unplug; here the device returns."""
    daemon = start_daemon("loopback,serial")
    client = Client(daemon.host, daemon.port)
    gone, stays = client.import_device(daemon.busid("loopback")), client.import_device(daemon.busid("serial"))
    with gone, stays:
        gone.submit(LOOPBACK_IN, length=512)
        pid = daemon.worker_pid(gone.device.busid)
        os.kill(pid, signal.SIGKILL)
        gone.wait_closed()
        assert device_descriptor(stays)[10:12] == b"\xf3\x01"
        daemon.wait_for_state(gone.device.busid, "shared")
        assert daemon.worker_pid(gone.device.busid) != pid
        with client.import_device(gone.device.busid) as again:
            assert device_descriptor(again)[10:12] == b"\xf4\x01"


def device_descriptor(session: Session) -> bytes:
    """Any transfer that works on any device."""
    return session.control_in(0x80, USB_REQ_GET_DESCRIPTOR, USB_DT_DEVICE << 8, length=18)


@from_other_addresses
def test_a_limit_per_address_leaves_room_for_others(start_daemon: StartDaemon) -> None:
    """A client with too many connections displaces its own oldest one."""
    limits = "[limits]\nmax_connections = 8\nmax_connections_per_address = 4\nhandshake_timeout = 60\n"
    daemon = start_daemon("loopback", limits)
    greedy = Client(daemon.host, daemon.port)
    modest = Client(daemon.host, daemon.port, source="127.0.0.2")
    idle = [greedy.connect() for _ in range(4)]
    other = modest.connect()
    newest = greedy.connect()
    assert idle[0].recv(1) == b""
    assert len(greedy.devlist()) == len(modest.devlist()) == 1
    assert idle[1].recv(1) == b""
    for connection in (*idle[2:], newest, other):
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    for connection in (*idle, newest, other):
        connection.close()
