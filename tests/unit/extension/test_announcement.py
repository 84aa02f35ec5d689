"""What a daemon prints at start: the exact commands for a client."""

import socket
from ipaddress import ip_interface

import pytest

from usbipd.extension.device import ClaimedDevice
from usbipd.extension.process import announcement
from usbipd.host_addresses import HostAddress


def device(busid: str, device_id: int) -> ClaimedDevice:
    return ClaimedDevice(device_id, busid, 0x1D6B, 0x1F1, "Simulated disk", 1.7e9, "simulated")


DEVICES = [device("240-10", 240 << 16 | 11), device("240-1", 240 << 16 | 2)]


def test_shared_devices_and_their_commands() -> None:
    lines = announcement(["127.0.0.1:3240", "[::1]:3240"], DEVICES).splitlines()
    assert lines[0].endswith("listens on 127.0.0.1:3240, [::1]:3240.")
    assert lines[1:] == [
        "Shared:",
        "  240-1   1d6b:01f1  Simulated disk",
        "  240-10  1d6b:01f1  Simulated disk",
        "On the client:",
        "  sudo modprobe vhci-hcd",
        "  usbip list -r 127.0.0.1",
        "  sudo usbip attach -r 127.0.0.1 -b 240-1",
        "  sudo usbip attach -r 127.0.0.1 -b 240-10",
    ]


@pytest.mark.parametrize(
    ("addresses", "host"),
    [
        (["127.0.0.1/8", "192.0.2.5/24", "2001:db8::5/64"], "192.0.2.5"),
        ([], socket.gethostname()),
    ],
)
def test_another_port_and_any_address(
    addresses: list[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [HostAddress(ip_interface(address), "eth0") for address in addresses]
    monkeypatch.setattr("usbipd.extension.process.host_addresses", lambda: found)
    text = announcement(["0.0.0.0:4000"], DEVICES)
    assert f"  sudo usbip --tcp-port 4000 attach -r {host} -b 240-1" in text


def test_nothing_shared() -> None:
    assert "usbipd bind DEVICE" in announcement(["127.0.0.1:3240"], [])
