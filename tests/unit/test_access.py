"""Access lists: the clients that they admit, in every spelling of an address."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipd.access import AccessList
from usbipd.errors import UsageError

LIST = ["192.168.1.0/24", "10.1.2.3", "2001:db8::/32", "fe80::1", "::1"]


@pytest.mark.parametrize(
    "address",
    ["192.168.1.0", "192.168.1.255", "10.1.2.3", "2001:db8:ffff::1", "2001:DB8::", "::1", "0:0:0:0:0:0:0:1",
     "fe80::1", "fe80::1%eth0", "fe80::1%3", "::ffff:192.168.1.7", "::ffff:10.1.2.3%eth0", "::ffff:a01:203"],
)  # fmt: skip
def test_admitted(address: str) -> None:
    assert AccessList(LIST).allows(address)


@pytest.mark.parametrize(
    "address",
    ["192.168.0.255", "192.168.2.0", "10.1.2.4", "2001:db9::", "::2", "fe80::2%eth0", "::ffff:10.1.2.4",
     "::10.1.2.3", "::"],
)  # fmt: skip
def test_refused(address: str) -> None:
    assert not AccessList(LIST).allows(address)


NO_ADDRESSES = [
    "",
    "localhost",
    "10.1.2.3:4000",
    "[::1]",
    "10.1.2.3/32",
    "10.1.2.03",
    "٣.1.2.3",
    " ::1",
    "%",
    "*",
]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_a_text_that_is_not_an_address_is_refused(address: str) -> None:
    assert not AccessList(["0.0.0.0/0", "::/0"]).allows(address)


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", *NO_ADDRESSES])
def test_an_empty_list_admits_all(address: str) -> None:
    assert AccessList([]).allows(address)


def test_a_repeated_network_counts_once() -> None:
    twice = AccessList(["10.0.0.0/8", "10.0.0.0/8", "10.1.0.0/16"])
    assert twice.allows("10.1.0.1")
    assert not twice.allows("11.1.0.1")


def test_an_ipv4_client_matches_no_ipv6_network() -> None:
    assert not AccessList(["::/0"]).allows("::ffff:192.0.2.1")


def test_a_bad_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"write 192\.168\.1\.0/24"):
        AccessList(["::1", "192.168.1.7/24"])


NETWORKS = st.ip_addresses().flatmap(
    lambda address: st.integers(1, address.max_prefixlen - 1).map(
        lambda bits: ipaddress.ip_network((address, bits), strict=False)
    )
)
"""Neither one address nor all: those are tested above."""

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


def beside(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> st.SearchStrategy[int]:
    """Numbers of addresses at the edges of `network`, inside and outside."""
    edges = [int(network.network_address) + step for step in (-1, 0, 1)]
    edges += [int(network.broadcast_address) + step for step in (-1, 0, 1)]
    return st.sampled_from([edge for edge in edges if 0 <= edge < 1 << network.max_prefixlen])


@given(
    st.data(), st.lists(NETWORKS.filter(lambda network: not network.overlaps(MAPPED)), min_size=1, max_size=5)
)
def test_agrees_with_ipaddress(
    data: st.DataObject, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> None:
    chosen = data.draw(st.sampled_from(networks))
    number = data.draw(beside(chosen))
    address = ipaddress.IPv4Address(number) if chosen.version == 4 else ipaddress.IPv6Address(number)
    allows = AccessList([str(network) for network in networks]).allows
    expected = any(address in network for network in networks)
    assert allows(str(address)) == expected
    assert allows(address.exploded) == expected
    assert allows(f"{address}%eth0") == expected
    if isinstance(address, ipaddress.IPv4Address):
        assert allows(f"::ffff:{address}") == expected


@given(st.text())
def test_any_text_is_accepted_as_an_address(text: str) -> None:
    AccessList(["10.0.0.0/8"]).allows(text)
