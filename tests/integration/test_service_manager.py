"""The notifications of a whole daemon to a service manager, by systemd's protocol (sd_notify(3))."""

import socket
from pathlib import Path

import pytest

from tests.client import Client
from tests.integration.daemon import PATIENCE, Daemon


def test_ready_after_the_start_and_stopping_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        (tmp_path / "daemon").mkdir()
        daemon = Daemon(tmp_path / "daemon", "serial")
        try:
            address = f"{daemon.host}:{daemon.port}"
            assert manager.recv(4096).decode() == f"READY=1\nSTATUS=listens on {address}"
            assert len(Client(daemon.host, daemon.port).devlist()) == 1
            daemon.stop()
            assert manager.recv(4096) == b"STOPPING=1"
        finally:
            daemon.kill()
