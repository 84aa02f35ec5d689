"""Devices named by product, in a real daemon: the binding is to the port or the hardware id."""

import os
import pty
import subprocess

from tests.client import Client
from tests.integration.conftest import StartDaemon
from tests.integration.daemon import PATIENCE, USBIPD, Daemon


def bindings(daemon: Daemon) -> dict[str | None, str | None]:
    """The product of each binding by the port that it names."""
    return {each["busid"]: each["product"] for each in daemon.document("list")["bindings"]}


def at_a_terminal(daemon: Daemon, *arguments: str, typed: str) -> tuple[int, str]:
    """The exit code and the output at a terminal with this input."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb+", buffering=0) as screen:
        process = subprocess.Popen(
            [*USBIPD, *arguments, "--socket", str(daemon.socket)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            close_fds=True,
        )
        os.close(theirs)
        screen.write(typed.encode())
        text = b""
        while True:
            try:
                part = screen.read(4096)
            except OSError:  # Linux: EIO once no process has the other end
                break
            if not part:
                break
            text += part
        return process.wait(PATIENCE), text.decode().replace("\r\n", "\n")


def test_by_name_by_id_and_several_at_once(start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon("keyboard,serial,loopback")
    keyboard, serial, loopback = (daemon.busid(name) for name in ("keyboard", "serial", "loopback"))
    done = daemon.usbipd("unbind", "KEYB", serial, "keyboard", "no such device")
    assert done.returncode == 1
    assert "no binding matches 'no such device'" in done.stderr
    assert bindings(daemon) == {loopback: "Simulated loopback"}

    done = daemon.usbipd("bind", "simulated keyboard", "serial")
    assert (done.returncode, done.stderr) == (
        0,
        f"{keyboard} is shared: usbipd Simulated keyboard\n"
        f"{serial} is shared: usbipd Simulated serial port\n",
    )
    assert bindings(daemon).keys() == {keyboard, serial, loopback}, "the ports, not the names"
    daemon.usbipd("unbind", "--all")
    with_hardware_id = daemon.document("bind", "1d6b:01f2")["binding"]
    assert (with_hardware_id["busid"], with_hardware_id["devices"]) == (None, [keyboard])
    assert daemon.document("unbind", "1d6b:01F2")["busids"] == [keyboard]
    assert daemon.usbipd("bind", keyboard, serial, loopback).returncode == 0


def test_detach_by_the_name_of_a_device(start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon("loopback,loopback")
    second = daemon.busid("loopback", 1)
    ambiguous = daemon.usbipd("unbind", "loopback")
    assert ambiguous.returncode == 2
    assert "'loopback' matches 2 bindings" in ambiguous.stderr
    with Client(daemon.host, daemon.port).import_device(second):
        assert daemon.document("detach", "loopback")["busid"] == second


def test_a_user_chooses(start_daemon: StartDaemon) -> None:
    daemon: Daemon = start_daemon("loopback,loopback")
    first, second = (daemon.busid("loopback", instance) for instance in (0, 1))
    code, text = at_a_terminal(daemon, "unbind", "loopback", typed="2\n")
    assert code == 0
    assert f"no longer shared: {second}\n" in text
    assert bindings(daemon).keys() == {first}
    code, text = at_a_terminal(daemon, "bind", typed="1\n")
    assert code == 0
    assert f"{second} is shared: usbipd Simulated loopback\n" in text
    assert f"The daemon listens on {daemon.host}:{daemon.port} only" in text
    assert f"sudo usbip attach -r 127.0.0.1 -b {second}\n" in text
