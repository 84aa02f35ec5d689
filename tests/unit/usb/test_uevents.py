"""Events of the kernel: samples through a socket pair, and the real socket of this host."""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.unit.extension.fakes import until

if sys.platform != "linux":  # the module cannot be imported elsewhere
    pytest.skip("the events of Linux", allow_module_level=True)

from usbipd.usb import uevents
from usbipd.usb.uevents import UeventListener, is_device_event, receives_kernel_events


def event(action: str, path: str, **fields: str) -> bytes:
    """As the kernel sends it."""
    pairs = {"ACTION": action, "DEVPATH": path} | fields
    text = [f"{action}@{path}", *(f"{key}={value}" for key, value in pairs.items())]
    return "".join(f"{each}\0" for each in text).encode()


PORT: Final = "/devices/platform/vhci_hcd.0/usb5/5-1"
DEVICE: Final = {"SUBSYSTEM": "usb", "DEVTYPE": "usb_device", "PRODUCT": "1d6b/104/100", "SEQNUM": "1715"}
INTERFACE: Final = {"SUBSYSTEM": "usb", "DEVTYPE": "usb_interface", "INTERFACE": "8/6/80"}
ADD: Final = event("add", PORT, **DEVICE)


@pytest.mark.parametrize(
    ("message", "tells"),
    [
        (ADD, True),
        (event("remove", PORT, **DEVICE), True),
        (event("bind", PORT, **DEVICE, DRIVER="usb"), False),
        (event("change", PORT, **DEVICE), False),
        (event("add", f"{PORT}/5-1:1.0", **INTERFACE), False),
        (event("add", f"{PORT}/5-1:1.0/host0", SUBSYSTEM="scsi", DEVTYPE="scsi_host"), False),
        (b"", False),
        (b"libudev\0\xfe\xed\xca\xfe", False),
    ],
)
def test_which_events_concern_devices(message: bytes, tells: bool) -> None:
    assert is_device_event(message) is tells


class Kernel:
    """The other end of a listener's socket, and the calls of the listener."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.events = 0
        self.ends: list[str] = []
        self.listener = UeventListener(self._count, self.ends.append)
        monkeypatch.setattr(uevents, "open_events", lambda: ours)
        monkeypatch.setattr(uevents, "receives_kernel_events", lambda: True)

    def _count(self) -> None:
        self.events += 1

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._kernel.send(message)

    def close(self) -> None:
        self._kernel.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.close()


async def test_devices_that_arrive_and_leave(kernel: Kernel) -> None:
    kernel.listener.start()
    assert kernel.events == 1, "for what came before"
    kernel.send(ADD, event("bind", PORT, **DEVICE), event("remove", PORT, **DEVICE))
    await until(lambda: kernel.events == 3)
    await kernel.listener.stop()
    assert not kernel.ends


async def test_many_events_at_once_do_not_block_the_loop(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uevents, "READ_AT_ONCE", 2)
    seen = []
    kernel.listener.start()
    kernel.send(*[ADD] * 6)
    while kernel.events < 7:
        await asyncio.sleep(0)
        seen.append(kernel.events)
    await kernel.listener.stop()
    assert {3, 5, 7} <= set(seen)


def test_lost_events_count_as_a_change(kernel: Kernel) -> None:
    class Losing:
        answers: Final = [OSError(errno.ENOBUFS, "lost"), BlockingIOError()]

        def recv(self, _size: int) -> bytes:
            raise self.answers.pop(0)

    kernel.listener._read(Losing())  # type: ignore[arg-type]
    assert (kernel.events, kernel.ends) == (1, [])


def test_a_socket_that_fails_ends_it(kernel: Kernel) -> None:
    class Failing:
        def recv(self, _size: int) -> bytes:
            raise OSError(errno.EIO, "it broke")

    kernel.listener._read(Failing())  # type: ignore[arg-type]
    assert (kernel.events, kernel.ends) == (0, ["the kernel has stopped sending hotplug events: it broke"])


def test_a_host_without_such_events(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(uevents, "open_events", fail)
    kernel.listener.start()
    assert (kernel.events, len(kernel.ends)) == (0, 1)
    assert kernel.ends == ["the kernel sends no hotplug events: Protocol not supported"]


def test_a_container_with_a_user_namespace(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uevents, "receives_kernel_events", lambda: False)
    kernel.listener.start()
    assert kernel.events == 0
    assert "user namespace" in kernel.ends[0]


async def test_this_host() -> None:
    """The namespace of the tests may be either, but the call must answer."""
    ours = os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116 - of the namespace, not of the link
    assert receives_kernel_events() or ours != uevents.PROC_USER_INIT_INO
    ends: list[str] = []
    listener = UeventListener(lambda: None, ends.append)
    listener.start()
    assert ends or listener._socket is not None
    await listener.stop()


def test_a_host_without_proc(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        receives_kernel_events(tmp_path / "net")
