"""Ours and the kernel's own server, side by side, and a device that one of them has.  Runs in the guest."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

from tests.e2e.guest.command import ask, wait_for_state
from tests.e2e.guest.server import PORT, KernelServer, Server, Usbipd
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice

FREE: Final = "1"  # drivers/usb/usbip/usbip_common.h, SDEV_ST_AVAILABLE


class Side(ABC):
    """A running server, on its own port."""

    name: ClassVar[str]
    tcp_port: ClassVar[int]
    server: Server

    @contextmanager
    def lent(self, device: UsbDevice) -> Iterator[None]:
        """This server has the device."""
        self._bind(device)
        self.wait_until_free(device)
        yield
        self.wait_until_free(device)
        self._unbind(device)

    @abstractmethod
    def wait_until_free(self, device: UsbDevice) -> None:
        """Until a client may have it: the last one has gone, and the device is as it was."""

    @abstractmethod
    def _bind(self, device: UsbDevice) -> None: ...

    @abstractmethod
    def _unbind(self, device: UsbDevice) -> None: ...


class Ours(Side):
    """The daemon that is tested."""

    name = "ours"
    tcp_port = PORT

    def __init__(self) -> None:
        self.server = Usbipd("--listen", "127.0.0.1", log_level="warning")

    def wait_until_free(self, device: UsbDevice) -> None:
        wait_for_state(device.busid, "shared")

    def _bind(self, device: UsbDevice) -> None:
        ask("bind", "--busid", device.busid)

    def _unbind(self, device: UsbDevice) -> None:
        ask("unbind", "--busid", device.busid)


class Kernel(Side):
    """usbip-host, the peer."""

    name = "usbip-host"
    tcp_port = PORT + 1

    def __init__(self) -> None:
        self.server = KernelServer(self.tcp_port)

    def wait_until_free(self, device: UsbDevice) -> None:
        status = device.path / "usbip_status"
        wait_for(f"{device.busid} free", lambda: status.read_text().strip() == FREE)

    def _bind(self, device: UsbDevice) -> None:
        run("usbip", "bind", "-b", device.busid)
        # usbip-host leaves it to the client to choose a configuration; the load generator chooses none.
        (device.path / "bConfigurationValue").write_text("1\n")

    def _unbind(self, device: UsbDevice) -> None:
        run("usbip", "unbind", "-b", device.busid)
