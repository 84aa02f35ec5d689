"""A pump over the simulated loopback device, for one client and without the daemon.  Runs beside the bench.

    python -m tests.bench.pump_alone

Prints its port, answers one OP_REQ_IMPORT with busid 1-1, and pumps until the client leaves: what a worker
does between two messages of the extension, in a process that can be watched instruction by instruction.
"""

import mmap
import socket

from usbipd import _pump
from usbipd.counters import COUNTER_PAGE_SIZE
from usbipd.protocol.constants import ST_OK
from usbipd.protocol.op import UsbDevice, encode_import_reply, encode_import_request
from usbipd.simulated.loopback import Loopback
from usbipd.usb.descriptors import parse_configuration

DEVICE = UsbDevice(
    path="/sys/devices/alone/1-1",
    busid="1-1",
    busnum=1,
    devnum=2,
    speed=Loopback.speed,
    idVendor=0x1D6B,
    idProduct=0x01F4,
    bcdDevice=0x0100,
    bDeviceClass=0xFF,
    bDeviceSubClass=0,
    bDeviceProtocol=0,
    bConfigurationValue=1,
    bNumConfigurations=2,
    interfaces=(),
)


def main() -> None:
    """Serves one client."""
    model = Loopback({})
    configurations = [parse_configuration(raw) for raw in model.configurations]
    channel, _extension = socket.socketpair()
    pump = _pump.Pump(
        _pump.SimulatedTransfers(model),
        configurations=configurations,
        configuration=1,
        devid=DEVICE.devid,
        channel=channel.fileno(),
        counters=mmap.mmap(-1, COUNTER_PAGE_SIZE),
        budget=_pump.SMALLEST_BUDGET,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        client, _address = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.recv(len(encode_import_request("1-1")), socket.MSG_WAITALL)
    client.sendall(encode_import_reply(ST_OK, DEVICE))
    pump.attach(client.fileno())
    pump.run()
    pump.finish()


if __name__ == "__main__":
    main()
