"""USB devices written in Python, plugged into this kernel through vhci-hcd.  Runs in the guest.

The kernel treats them like physical devices: they are enumerated, get drivers, and appear in sysfs and usbfs,
also with isochronous endpoints.  This end of vhci-hcd's connection is the device, so it sees every request.
The devices of the stock client are on another controller: on the same one, both would deadlock on its
bandwidth lock (hcd->bandwidth_mutex in drivers/usb/core/message.c).
"""

import re
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.e2e.guest.scenario import StepError
from tests.e2e.guest.system import wait_for
from tests.e2e.guest.usb import UsbDevice
from tests.urb import (
    Command,
    CommandReader,
    Reply,
    RetUnlink,
    Submit,
    answer,
    answer_isochronous,
    encode,
)
from usbipd.protocol.constants import (
    LINUX_ECONNRESET,
    LINUX_EPIPE,
    USB_DIR_IN,
    USB_DT_CONFIG,
    USB_DT_DEVICE,
    USB_DT_STRING,
    USB_ENDPOINT_XFER_ISOC,
    USBIP_DIR_IN,
    Speed,
)
from usbipd.simulated.descriptors import string_descriptors
from usbipd.usb.descriptors import parse_configuration

CONTROLLER: Final = "vhci_hcd.1"
ATTACH: Final = Path(
    "/sys/devices/platform/vhci_hcd.0/attach"
)  # of all controllers; drivers/usb/usbip/vhci_sysfs.c
STATUS: Final = Path("/sys/devices/platform/vhci_hcd.0/status.1")
FREE, USED = "004", "006"  # drivers/usb/usbip/usbip_common.h, VDEV_ST_NULL and VDEV_ST_USED
DEVID: Final = 0x00010001

GET_DESCRIPTOR, SET_INTERFACE = 6, 11  # USB 2.0, table 9-4
TO_INTERFACE: Final = 0x01  # bmRequestType, USB 2.0, table 9-2
_STANDARD_OR_CLASS_IN: Final = {0x80, 0x81, 0x82}


class Request(NamedTuple):
    """A setup packet (USB 2.0, table 9-2)."""

    bmRequestType: int
    bRequest: int
    wValue: int
    wIndex: int
    wLength: int

    @classmethod
    def of(cls, setup: bytes) -> Self:
        value, index, length = (int.from_bytes(setup[at : at + 2], "little") for at in (2, 4, 6))
        return cls(setup[0], setup[1], value, index, length)

    def __str__(self) -> str:
        numbers = f"{self.wValue:04x} {self.wIndex:04x} {self.wLength:04x}"
        return f"{self.bmRequestType:02x} {self.bRequest:02x} {numbers}"


class VirtualDevice:
    """One device with the endpoints of its only configuration.

    Bulk and interrupt IN endpoints return the data of the OUT endpoints.  An isochronous IN endpoint counts:
    each byte is one more than the previous one, modulo 256.  An isochronous OUT endpoint stores all data.
    """

    def __init__(
        self,
        device: bytes,
        configuration: bytes,
        *,
        speed: Speed = Speed.HIGH,
        serial: str = "V1",
        others: Sequence[bytes] = (),
        unanswered: Collection[tuple[int, int]] = (),
    ) -> None:
        """`others`: further configurations, which are never used; `unanswered`: bmRequestType and bRequest
        of the requests that the device never answers.
        """
        self._device = device
        self._configurations = (configuration, *others)
        self._strings = string_descriptors(("Acme", "Virtual device", serial))
        self._speed = speed
        self._unanswered = unanswered
        self._isochronous = {
            endpoint.bEndpointAddress
            for endpoint in parse_configuration(configuration).endpoints
            if endpoint.bmAttributes & 3 == USB_ENDPOINT_XFER_ISOC
        }
        self.requests: list[Request] = []
        """All received requests, in order."""
        self.played = bytearray()
        """The data of the isochronous OUT endpoint."""
        self._count = 0
        self._looped = bytearray()
        self._waiting: dict[int, Submit] = {}
        """Unanswered requests by seqnum, in order."""

    def plug(self) -> UsbDevice:
        """Plug it in; returns it as this kernel sees it, configured."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            kernel = socket.create_connection(listener.getsockname())
            self._connection, _address = listener.accept()
        for end in (kernel, self._connection):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._thread = threading.Thread(target=self._serve, name="virtual-device", daemon=True)
        self._thread.start()
        port = wait_for(f"a free port of {CONTROLLER}", lambda: _free_port(self._speed))
        with kernel:
            ATTACH.write_text(f"{port} {kernel.fileno()} {DEVID} {int(self._speed)}")
        return wait_for(f"a device on port {port} of {CONTROLLER}", lambda: _device_on(port))

    def unplug(self) -> None:
        """Unplug it."""
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    # ---- the device's side of the connection ---------------------------------------------------------------

    def _serve(self) -> None:
        reader = CommandReader(self._is_isochronous)
        self._waiting.clear()
        try:
            while data := self._connection.recv(1 << 16):
                for command in reader.feed(data):
                    for reply in self._replies(command):
                        self._connection.sendall(encode(reply))
        except ConnectionError:
            return

    def _is_isochronous(self, ep: int, direction: int) -> bool:
        return _address(ep, direction) in self._isochronous

    def _replies(self, command: Command) -> Iterator[Reply]:
        if not isinstance(command, Submit):
            was_waiting = self._waiting.pop(command.unlink_seqnum, None) is not None
            yield RetUnlink(command.seqnum, -LINUX_ECONNRESET if was_waiting else 0)
        elif command.iso:
            yield self._stream(command)
        elif command.ep == 0:
            request = Request.of(command.setup)
            self.requests.append(request)
            if (request.bmRequestType, request.bRequest) in self._unanswered:
                self._waiting[command.seqnum] = command
            else:
                yield self._control(command, request)
        else:
            if command.direction == USBIP_DIR_IN:
                self._waiting[command.seqnum] = command
            else:
                self._looped += command.data
                yield answer(command, 0, len(command.data))
            yield from self._loop()

    def _control(self, command: Submit, request: Request) -> Reply:
        if request.bmRequestType == USB_DIR_IN and request.bRequest == GET_DESCRIPTOR:
            data = self._descriptor(request.wValue >> 8, request.wValue & 0xFF)
        elif request.bmRequestType & USB_DIR_IN:
            data = bytes(request.wLength) if request.bmRequestType in _STANDARD_OR_CLASS_IN else None
        else:
            return answer(command, 0, len(command.data))
        if data is None:
            return answer(command, -LINUX_EPIPE, 0)
        return answer(command, 0, min(len(data), request.wLength), data)

    def _descriptor(self, kind: int, index: int) -> bytes | None:
        found: Sequence[bytes] = {
            USB_DT_DEVICE: (self._device,),
            USB_DT_CONFIG: self._configurations,
            USB_DT_STRING: self._strings,
        }.get(kind, ())
        return found[index] if index < len(found) else None

    def _loop(self) -> Iterator[Reply]:
        for seqnum, submit in list(self._waiting.items()):
            if self._looped and submit.ep != 0:
                del self._waiting[seqnum]
                data = bytes(self._looped[: submit.transfer_buffer_length])
                del self._looped[: len(data)]
                yield answer(submit, 0, len(data), data)

    def _stream(self, command: Submit) -> Reply:
        packet_results = [(packet.length, 0) for packet in command.iso]
        if command.direction != USBIP_DIR_IN:
            for packet in command.iso:
                self.played += command.data[packet.offset : packet.offset + packet.length]
            return answer_isochronous(command, 0, packet_results)
        buffer = bytearray(command.transfer_buffer_length)
        for packet in command.iso:
            for at in range(packet.offset, packet.offset + packet.length):
                buffer[at] = self._count & 0xFF
                self._count += 1
        return answer_isochronous(command, 0, packet_results, bytes(buffer))


def _address(ep: int, direction: int) -> int:
    return ep | (USB_DIR_IN if direction == USBIP_DIR_IN else 0)


def _ports() -> dict[int, tuple[str, str, str]]:
    """Hub, state and busid of each port of the controller.  The file must be read in one go."""
    line = re.compile(r"^([hs]s) +(\d+) +(\d+) +\d+ +[0-9a-f]+ +\d+ +(\S+)$", re.MULTILINE)
    return {int(port): (hub, state, busid) for hub, port, state, busid in line.findall(STATUS.read_text())}


def _free_port(speed: Speed) -> str | None:
    wanted = "ss" if speed is Speed.SUPER else "hs"
    free = (port for port, (hub, state, _busid) in _ports().items() if (hub, state) == (wanted, FREE))
    return next((str(port) for port in free), None)


def _device_on(port: str) -> UsbDevice | None:
    _hub, state, busid = _ports()[int(port)]
    if state == FREE:
        raise StepError(f"the kernel has dropped the device on port {port} of {CONTROLLER}")
    device = UsbDevice(busid)
    return device if state == USED and device.is_configured else None
