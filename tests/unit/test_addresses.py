"""Addresses from users: valid ones are accepted, others refused with what would be right."""

import ipaddress
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.addresses import (
    ListenAddress,
    explain_absent,
    parse_listen,
    parse_network,
    require_presence,
)
from usbipd.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1", "127.0.0.1", 3240),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("127.0.0.1:65535", "127.0.0.1", 65535),
        ("::1", "::1", 3240),
        ("[::]", "::", 3240),
        ("[2001:DB8::1]:3241", "2001:db8::1", 3241),
        ("fe80::1%eth0", "fe80::1%eth0", 3240),
    ],
)
def test_listen(text: str, host: str, port: int) -> None:
    address = parse_listen(text)
    assert address == ListenAddress(host, port)
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":3240", "localhost", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣", "1.2.3:4",
     "[127.0.0.1]:1", "[::1", "::1]:1", "[::1]:x", "127.0.0.1:1:2", "*",
     "224.0.0.1", "[ff02::1]:1", "255.255.255.255", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_bad_addresses_to_listen_on(text: str) -> None:
    with pytest.raises(UsageError, match="is not an address to listen on"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.168.1.7", "192.168.1.7/32"),
        ("192.168.1.7/32", "192.168.1.7/32"),
        ("192.168.1.0/24", "192.168.1.0/24"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
        ("2001:DB8:0::/48", "2001:db8::/48"),
        ("fe80::/10", "fe80::/10"),
    ],
)
def test_network(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.168.1.7/24", "it has bits set after the first 24, write 192.168.1.0/24"),
        ("1.2.3.4/024", "it has bits set after the first 24, write 1.2.3.0/24"),
        ("2001:db8::1/32", "it has bits set after the first 32, write 2001:db8::/32"),
        ("localhost", "names are not looked up, write 127.0.0.1 and ::1"),
        ("printer.lan", "names are not looked up, write its numeric address, such as 192.168.1.7"),
        ("printer/24", "names are not looked up, write its numeric address, such as 192.168.1.7"),
        ("::ffff:192.0.2.1", "clients that come over IPv4 have IPv4 addresses, write 192.0.2.1"),
        ("::ffff:192.0.2.7/120", "clients that come over IPv4 have IPv4 addresses, write 192.0.2.0/24"),
        ("[::ffff:192.0.2.1%eth0]", "clients that come over IPv4 have IPv4 addresses, write 192.0.2.1"),
        ("::ffff:0:0/96", "clients that come over IPv4 have IPv4 addresses, write 0.0.0.0/0"),
        ("fe80::1%eth0", "it must not name an interface, write fe80::1"),
        ("fe80::1%eth0/64", "it must not name an interface, write fe80::/64"),
        ("0.0.0.0", "no client has this address; to allow every client, write 0.0.0.0/0"),
        ("::/128", "no client has this address; to allow every client, write ::/0"),
        ("10.0.0.0/255.0.0.0", "only a number of bits may follow an address, write 10.0.0.0/8"),
        ("10.0.0.0/0.255.255.255", "only a number of bits may follow an address, write 10.0"),
        ("192.0.2.1:3240", "only a number of bits may follow an address, write 192.0.2.1"),
        ("[::1]:3240", "only a number of bits may follow an address, write ::1"),
        ("[::1]", "only a number of bits may follow an address, write ::1"),
        (" ::1", "only a number of bits may follow an address, write ::1"),
        ("10.0.0.0/33", "after the / write a number of bits, 0 to 32"),
        ("10.0.0.0/", "after the / write a number of bits, 0 to 32"),
        ("10.0.0.0/٣", "after the / write a number of bits, 0 to 32"),
        ("::1/-1", "after the / write a number of bits, 0 to 128"),
        ("", "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"),
        ("*", "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"),
        ("192.168.1", "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"),
        ("192.168.01.1", "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"),
        ("[]:1", "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"),
    ],
)  # fmt: skip
def test_bad_networks(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_network(text)
    assert str(caught.value).startswith(f"{text!r} is not an address or a network of clients: {reason}")
    assert caught.value.code == "bad-network"


CAN_BE = st.ip_addresses().flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda bits: ipaddress.ip_network((address, bits), strict=False)
    )
)


def cannot_be(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    """Whether no client can have this address."""
    mapped = isinstance(network, ipaddress.IPv6Network) and network.subnet_of(
        ipaddress.IPv6Network("::ffff:0:0/96")
    )
    return mapped or (network.num_addresses == 1 and network.network_address.is_unspecified)


@given(CAN_BE.filter(lambda network: not cannot_be(network)))
def test_networks_round_trip(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assert parse_network(str(network)) == network
    assert parse_network(network.exploded) == network
    if network.num_addresses == 1:
        assert parse_network(str(network.network_address)) == network


ALMOST = st.text(st.sampled_from("0123456789abcdefF.:/[]%- x٣"), max_size=24)


@given(st.text() | ALMOST)
def test_any_text_is_a_network_or_refused(text: str) -> None:
    """The text that the error suggests is accepted."""
    try:
        network = parse_network(text)
    except UsageError as error:
        if right := re.search(", write ([0-9a-f.:/]+)$", str(error)):
            parse_network(right[1])
    else:
        assert network == ipaddress.ip_network(text)


@given(st.text() | ALMOST)
def test_any_text_is_an_address_to_listen_on_or_refused(text: str) -> None:
    try:
        address = parse_listen(text)
    except UsageError:
        return
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize("text", ["fe80::1", "[fe80::1]:3240", "FE80:0::1"])
def test_a_link_local_address_needs_its_interface(text: str) -> None:
    with pytest.raises(UsageError, match="link-local addresses need an interface: fe80::1%eth0"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("::1:3240", "[::1]:3240"),
        ("2001:db8::5:80", "[2001:db8::5]:80"),
        ("::4000", "[::]:4000"),
        ("fe80::1", None),
        ("2001:db8::5:99999", None),
        ("2001:db8::ab", None),
        ("[::1:3240]:4000", None),
        ("192.0.2.1", None),
    ],
)
def test_a_missing_address_may_be_one_with_a_port(text: str, meant: str | None) -> None:
    try:
        address = parse_listen(text)
    except UsageError:
        assert meant is None
        return
    error = explain_absent(address)
    assert error.code == "no-such-address"
    expected = "choose an address of this host" if meant is None else f"with a port in brackets: {meant}"
    assert expected in (error.advice or "")


def test_the_check_of_an_address_uses_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        require_presence(ListenAddress("127.0.0.1", listener.getsockname()[1]))
    with pytest.raises(UsageError, match="this host has no such address"):
        require_presence(ListenAddress("192.0.2.1", 3240))
