"""What a daemon prints when it is up: the exact commands for a client."""

import socket

import pytest

from usbipd.extension.process import announcement
from usbipd.ipc.reports import DeviceReport, DeviceState


def device(busid: str, state: DeviceState) -> DeviceReport:
    return DeviceReport(
        busid=busid,
        vendor_id=0x1D6B,
        product_id=0x1F1,
        serial=None,
        manufacturer="usbipd",
        product="Simulated disk",
        speed="high",
        device_class=0,
        drivers=[],
        simulated=True,
        state=state,
    )


DEVICES = [device("240-1", DeviceState.SHARED), device("1-7", DeviceState.NOT_SHARED)]


def test_shared_devices_and_their_commands() -> None:
    lines = announcement(["127.0.0.1:3240", "[::1]:3240"], DEVICES).splitlines()
    assert lines[0].endswith("listens on 127.0.0.1:3240, [::1]:3240.")
    assert lines[1:] == [
        "Shared:",
        "  240-1   1d6b:01f1  Simulated disk",
        "On the client:",
        "  sudo modprobe vhci-hcd",
        "  usbip list -r 127.0.0.1",
        "  sudo usbip attach -r 127.0.0.1 -b 240-1",
    ]


def test_another_port_and_any_address() -> None:
    text = announcement(["0.0.0.0:4000"], DEVICES)
    assert f"  sudo usbip --tcp-port 4000 attach -r {socket.gethostname()} -b 240-1" in text


@pytest.mark.parametrize("devices", [[], DEVICES[1:]], ids=["no devices", "none shared"])
def test_nothing_shared(devices: list[DeviceReport]) -> None:
    assert "usbipd bind --busid BUSID" in announcement(["127.0.0.1:3240"], devices)
