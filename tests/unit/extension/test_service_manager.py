"""What a service manager hears, over a socket such as systemd's."""

import logging
import os
import socket
from pathlib import Path

import pytest

from usbipd.extension import service_manager


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_assignments_one_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    if abstract and os.uname().sysname != "Linux":
        pytest.skip("only Linux has abstract addresses")
    name = f"usbipd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        service_manager.tell(service_manager.READY, STATUS="listens on 127.0.0.1:3240")
        assert manager.recv(4096) == b"READY=1\nSTATUS=listens on 127.0.0.1:3240"
        service_manager.tell(service_manager.STOPPING)
        assert manager.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234"])
def test_where_there_is_no_such_socket(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    service_manager.tell(service_manager.READY)
    assert not caplog.records


def test_a_manager_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.tell(service_manager.READY)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("gone READY=1: No such file or directory")
