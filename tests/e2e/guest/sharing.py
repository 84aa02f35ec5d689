"""Shares a device of this host with the stock client, and takes it back.  Runs in the guest."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.e2e.guest import client
from tests.e2e.guest.command import ask, listed, wait_for_state
from tests.e2e.guest.gadget import Function, Gadget
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_drivers


@contextmanager
def attached(device: UsbDevice, drivers: Sequence[str], server: str = client.SERVER) -> Iterator[UsbDevice]:
    """The device on the client of `server`, once its `drivers` have claimed its interfaces there.

    They must hold it on this host before; after the block it is unbound, and theirs again.  Raises
    `StepError`.
    """
    wait_for_drivers(device, drivers)
    ask("bind", "--busid", device.busid)
    wait_for_state(device.busid, "shared")
    wait_for_drivers(device, ["usbfs"] * len(drivers))
    there = client.attach(device.busid, device.hardware_id, server=server)
    wait_for_drivers(there, drivers)
    yield there
    client.detach(there)
    wait_for_state(device.busid, "shared")
    ask("unbind", "--busid", device.busid)
    wait_for_drivers(device, drivers)


@contextmanager
def attached_gadget(
    gadget: Gadget, drivers: Sequence[str], server: str = client.SERVER
) -> Iterator[UsbDevice]:
    """Like `attached`; the gadget is plugged in before and removed afterwards."""
    gadget.plug()
    device = gadget.wait_until_plugged()
    wait_for(f"{device.busid} in the list", lambda: listed(device.busid))
    with attached(device, drivers, server) as there:
        yield there
    gadget.unplug()
    gadget.wait_until_unplugged()
    gadget.remove()


class Lent:
    """A gadget that the client uses over several steps, at high speed."""

    there: UsbDevice  # on the client
    gadget: Gadget

    def __init__(self, *functions: Function, drivers: Sequence[str]) -> None:
        self._functions = functions
        self._drivers = drivers
        self._end = ExitStack()

    def lend(self) -> None:
        """Plug it in and attach it."""
        self.gadget = Gadget(*self._functions)
        self.there = self._end.enter_context(attached_gadget(self.gadget, self._drivers))

    def take_back(self) -> None:
        """The end of `attached_gadget`."""
        self._end.close()
