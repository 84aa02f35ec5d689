"""The commands for a client, with an address that it can reach."""

from ipaddress import ip_interface

import pytest

from usbipd.client_commands import client_commands
from usbipd.host_addresses import HostAddress

LO = [HostAddress(ip_interface("127.0.0.1/8"), "lo"), HostAddress(ip_interface("::1/128"), "lo")]
ETHERNET = HostAddress(ip_interface("192.0.2.5/24"), "eth0")
TUNNEL = HostAddress(ip_interface("10.8.0.2/16"), "wg0")
GLOBAL = HostAddress(ip_interface("2001:db8::5/64"), "eth0")
LINK_LOCAL = HostAddress(ip_interface("fe80::5/64"), "eth0")
SELF_ASSIGNED = HostAddress(ip_interface("169.254.7.7/16"), "en5")
ALL = [*LO, LINK_LOCAL, SELF_ASSIGNED, ETHERNET, TUNNEL, GLOBAL]


def lines(listening: str, allow: str = "", addresses: list[HostAddress] = ALL) -> list[str]:
    return client_commands(["1-1"], listening.split(), allow.split(), addresses, "alice")


@pytest.mark.parametrize(
    ("listening", "allow", "command"),
    [
        ("192.0.2.5:3240", "", "sudo usbip attach -r 192.0.2.5 -b 1-1"),
        ("192.0.2.5:3241", "", "sudo usbip --tcp-port 3241 attach -r 192.0.2.5 -b 1-1"),
        ("[2001:db8::5]:3240", "", "sudo usbip attach -r 2001:db8::5 -b 1-1"),
        ("0.0.0.0:3240", "", "sudo usbip attach -r 192.0.2.5 -b 1-1"),
        ("[::]:3240", "", "sudo usbip attach -r 2001:db8::5 -b 1-1"),
        ("127.0.0.1:3240 10.8.0.2:3240", "", "sudo usbip attach -r 10.8.0.2 -b 1-1"),
        ("0.0.0.0:3240", "10.8.0.0/24", "sudo usbip attach -r 10.8.0.2 -b 1-1"),
        ("0.0.0.0:3240", "127.0.0.1 10.8.0.77", "sudo usbip attach -r 10.8.0.2 -b 1-1"),
        ("0.0.0.0:3240 [::]:3240", "2001:db8::/32", "sudo usbip attach -r 2001:db8::5 -b 1-1"),
        ("0.0.0.0:3240", "169.254.0.0/16", "sudo usbip attach -r 169.254.7.7 -b 1-1"),
    ],
)
def test_an_address_that_clients_can_reach(listening: str, allow: str, command: str) -> None:
    assert lines(listening, allow)[:2] == ["On the client:", f"  {command}"]


def test_a_link_local_address_is_last_and_names_the_interface_of_the_client() -> None:
    assert lines("[::]:3240", addresses=[*LO, LINK_LOCAL]) == [
        "On the client:",
        "  sudo usbip attach -r fe80::5%INTERFACE -b 1-1",
    ]
    assert lines("0.0.0.0:3240 [::]:3240")[2:] == [
        "Other addresses of this machine: 10.8.0.2 (wg0), 2001:db8::5 (eth0), "
        "169.254.7.7 (en5), fe80::5%INTERFACE (eth0)"
    ]


def test_only_some_of_many_addresses_are_shown() -> None:
    many = [HostAddress(ip_interface(f"10.0.{number}.1/24"), f"br{number}") for number in range(20)]
    assert lines("0.0.0.0:3240", addresses=many)[2] == (
        "Other addresses of this machine: 10.0.1.1 (br1), 10.0.2.1 (br2), 10.0.3.1 (br3), 10.0.4.1 (br4), "
        "15 more"
    )


def test_clients_of_another_network_need_a_route() -> None:
    assert lines("192.0.2.5:3240", "198.51.100.0/24") == [
        "On the client:",
        "  sudo usbip attach -r 192.0.2.5 -b 1-1",
        "No address of this machine is in 198.51.100.0/24: a client there needs a route to 192.0.2.5.",
    ]


@pytest.mark.parametrize(
    ("listening", "inner"),
    [
        ("127.0.0.1:3240", "127.0.0.1:3240"),
        ("[::1]:3241", "[::1]:3241"),
        ("127.0.0.1:3240 [::1]:3240", "127.0.0.1:3240"),
    ],
)
def test_loopback_only_goes_through_ssh(listening: str, inner: str) -> None:
    assert lines(listening)[:3] == [
        f"The daemon listens on {', '.join(listening.split())} only: no other machine can connect. Through a "
        "tunnel, on the client:",
        f"  ssh -N -L 3240:{inner} alice@192.0.2.5 &",
        "  sudo usbip attach -r 127.0.0.1 -b 1-1",
    ]
    assert "set `listen` in usbipd.toml" in lines(listening)[3]


def test_a_device_for_this_machine_only_goes_through_ssh() -> None:
    assert lines("0.0.0.0:3240", "127.0.0.0/8") == [
        "Only clients on this machine may use it. Through a tunnel, on the client:",
        "  ssh -N -L 3240:127.0.0.1:3240 alice@192.0.2.5 &",
        "  sudo usbip attach -r 127.0.0.1 -b 1-1",
    ]
    assert "  ssh -N -L 3240:[::1]:3240 alice@192.0.2.5 &" in lines("[::]:3240", "::1")


def test_a_host_without_an_address_gets_a_placeholder() -> None:
    assert "  ssh -N -L 3240:127.0.0.1:3240 alice@HOST &" in lines("127.0.0.1:3240", addresses=LO)


@pytest.mark.parametrize(
    ("listening", "allow"),
    [
        ("127.0.0.1:3240", "192.0.2.0/24"),  # the default of the daemon, and a network
        ("192.0.2.5:3240", "2001:db8::/32"),
        ("[2001:db8::5]:3240", "192.0.2.0/24"),
        ("192.0.2.5:3240", "127.0.0.1"),
        ("0.0.0.0:3240", "::1"),
    ],
)
def test_a_device_that_no_client_can_reach(listening: str, allow: str) -> None:
    first, hint = lines(listening, allow)
    assert first == (f"No client can use it: it is for {allow} only, and the daemon listens on {listening}.")
    assert hint.startswith("hint: bind it again with another --allow")


def test_a_daemon_that_does_not_listen() -> None:
    assert client_commands(["1-1"], [], [], ALL, "alice") == []
    assert client_commands([], ["0.0.0.0:3240"], [], ALL, "alice") == []
