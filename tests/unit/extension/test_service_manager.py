"""Notifications of a service manager, over a socket like systemd's."""

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbipd import frozen
from usbipd.extension import service_manager

linux_only = pytest.mark.skipif(os.uname().sysname != "Linux", reason="SCM_CREDENTIALS is of Linux")
CAP_SYS_ADMIN = 21  # include/uapi/linux/capability.h
UNPRIVILEGED = 65534


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_assignments_one_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    if abstract and os.uname().sysname != "Linux":
        pytest.skip("only Linux has abstract addresses")
    name = f"usbipd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        service_manager.notify(service_manager.READY, STATUS="listens on 127.0.0.1:3240")
        assert manager.recv(4096) == b"READY=1\nSTATUS=listens on 127.0.0.1:3240"
        service_manager.notify(service_manager.STOPPING)
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_without_a_notify_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    service_manager.notify(service_manager.READY)
    assert not caplog.records


def test_a_service_manager_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.notify(service_manager.READY)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("/gone: No such file or directory")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket that all users can reach and that asks the kernel for the sender, as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0usbipd-test-{os.getpid()}")
        manager.settimeout(10)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@usbipd-test-{os.getpid()}")
        yield manager


def received(manager: socket.socket) -> tuple[bytes, int]:
    """A message, and the pid of its sender."""
    message, [(_level, kind, credentials)], _flags, _address = manager.recvmsg(4096, 128)
    assert kind == socket.SCM_CREDENTIALS
    return message, struct.unpack("=iII", credentials)[0]


def freeze(monkeypatch: pytest.MonkeyPatch, launcher: int) -> None:
    monkeypatch.setattr(frozen, "IS_FROZEN", True)
    monkeypatch.setattr(frozen, "launcher", lambda: launcher)


def may_speak_for_others() -> bool:
    if os.uname().sysname != "Linux":
        return False
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(facts["CapEff"], 16) >> CAP_SYS_ADMIN & 1)


@linux_only
def test_without_a_launcher_it_sends_as_itself(manager: socket.socket) -> None:
    service_manager.notify(service_manager.READY)
    assert received(manager) == (b"READY=1", os.getpid())


@pytest.mark.skipif(not may_speak_for_others(), reason="needs CAP_SYS_ADMIN, which a root on Linux may have")
def test_it_sends_in_the_name_of_its_launcher(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(monkeypatch, os.getppid())
    service_manager.notify(service_manager.READY, STATUS="listens")
    assert received(manager) == (b"READY=1\nSTATUS=listens", os.getppid())


@linux_only
def test_without_the_capability_it_sends_as_itself(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    freeze(monkeypatch, os.getppid())
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(UNPRIVILEGED)  # takes the effective capabilities away, too: capabilities(7)
    try:
        service_manager.notify(service_manager.READY)
    finally:
        if is_root:
            os.seteuid(0)
    assert received(manager) == (b"READY=1", os.getpid())
    assert not caplog.records


@linux_only
def test_a_launcher_that_was_killed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    freeze(monkeypatch, 2**22 + 1)  # beyond PID_MAX_LIMIT, include/linux/threads.h: unused
    service_manager.notify(service_manager.STOPPING)
    assert received(manager) == (b"STOPPING=1", os.getpid())
    assert not caplog.records
