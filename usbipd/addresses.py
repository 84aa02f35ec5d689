"""Parses numeric addresses and networks from users.  Used by extension, server and CLI.

Names are not looked up: a later answer of a resolver must not change who can reach a device.
"""

import errno
import ipaddress
import itertools
import re
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from usbipd.errors import UsageError
from usbipd.protocol.constants import USBIP_PORT

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
"""A range of addresses, or a single one."""


class ListenAddress(NamedTuple):
    """A numeric address and a TCP port; port 0 chooses a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> ListenAddress:
    """`A.B.C.D`, `A.B.C.D:PORT`, `IPv6`, `[IPv6]` or `[IPv6]:PORT`.

    Raises `UsageError` for anything else, and for addresses to which no client can connect.
    """
    wrong = UsageError(
        f"{text!r} is not an address to listen on: "
        f"give a numeric address with or without a port, such as 127.0.0.1 or [::1]:{USBIP_PORT}",
        code="bad-address",
    )
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?", text)
    if bracketed:
        host, port = bracketed.groups()
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if port is not None and not re.fullmatch("[0-9]{1,5}", port):
        raise wrong
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise wrong from None
    number = USBIP_PORT if port is None else int(port)
    if number > 65535 or (bracketed and address.version != 6):
        raise wrong
    if address.is_multicast or address == _BROADCAST or getattr(address, "ipv4_mapped", None) is not None:
        raise wrong
    if isinstance(address, ipaddress.IPv6Address) and address.is_link_local and address.scope_id is None:
        raise UsageError(
            f"{text!r} is not an address to listen on: "
            f"link-local addresses need an interface: {address}%eth0",
            code="bad-address",
        )
    return ListenAddress(str(address), number)


_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


def refuse_overlap(addresses: Sequence[ListenAddress]) -> None:
    """Raises `UsageError` if one address includes another: the kernel's error would not name the cause."""
    for one, other in itertools.permutations(addresses, 2):
        every = "::" if ":" in other.host else "0.0.0.0"  # noqa: S104 - what is asked for, not what we choose
        if one.port == other.port != 0 and one.host in (other.host, every):
            raise UsageError(
                f"cannot listen on {other}: it is listed twice"
                if one == other
                else f"cannot listen on {other}: {one} is also listed, and includes it",
                code="bad-address",
                advice="remove one of them",
            )


def require_presence(address: ListenAddress) -> None:
    """Raises `UsageError` if this host does not have `address`.  Uses no port of it."""
    try:
        family, kind, protocol, _name, where = socket.getaddrinfo(
            address.host, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.bind(where)
    except OSError as error:
        if is_absent(error):
            raise explain_absent(address) from error


def is_absent(error: OSError) -> bool:
    """Whether `error` says that this host does not have an address, or its interface, or its family."""
    return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, socket.EAI_NONAME)


def explain_absent(address: ListenAddress) -> UsageError:
    """The error for an address that this host does not have."""
    meant = with_brackets(address)
    if meant is None:
        advice = "choose an address of this host for --listen, or 0.0.0.0 for all"
    else:
        advice = f"write an IPv6 address with a port in brackets: {meant}"
    return UsageError(
        f"cannot listen on {address}: this host has no such address", code="no-such-address", advice=advice
    )


def with_brackets(address: ListenAddress) -> ListenAddress | None:
    """The likely meaning if the end of an IPv6 address can be a port, as in ::1:3240."""
    host, _colon, end = address.host.rpartition(":")
    if address.port != USBIP_PORT or not re.fullmatch("[1-9][0-9]{0,4}", end):
        return None
    try:
        return parse_listen(f"[{'::' if host == ':' else host}]:{end}")
    except UsageError:  # the rest is not an address
        return None


_SUBNET_BITS: Final = 64
"""The other 64 bits of an IPv6 address are the interface identifier, chosen by the host (RFC 4291, 2.5.1)."""


def source_of(address: str) -> str:
    """The source by which a client is counted, for its numeric address with or without `%interface`.

    IPv4, also as ::ffff:A.B.C.D: the address.  IPv6: its /64.  Link-local IPv6: the address, since all hosts
    of a link share their /64.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address) or parsed.is_link_local:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _SUBNET_BITS), strict=False))


def parse_network(text: str) -> Network:
    """An address, or a network in CIDR notation: `A.B.C.D`, `A.B.C.D/BITS`, `IPv6` or `IPv6/BITS`.

    Raises `UsageError` for anything else, and for a network that cannot match the clients that it seems to
    mean.  If the meaning is clear, the error says how to write it.
    """
    wrong = f"{text!r} is not an address or a network of clients"
    plain = _plain(text)
    try:
        network = ipaddress.ip_network(plain, strict=False)
    except ValueError:
        raise UsageError(f"{wrong}: {_unreadable(plain)}", code="bad-network") from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        network = ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
        fault = "clients that come over IPv4 have IPv4 addresses"
    elif network.num_addresses == 1 and network.network_address.is_unspecified:
        network = network.supernet(new_prefix=0)
        fault = "no client has this address; to allow every client"
    elif "%" in text:
        fault = "it must not name an interface"
    elif plain != text or "." in text.partition("/")[2]:  # a netmask
        fault = "only a number of bits may follow an address"
    elif network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        fault = f"it has bits set after the first {network.prefixlen}"
    else:
        return network
    right = network.network_address if network.num_addresses == 1 else network
    raise UsageError(f"{wrong}: {fault}, write {right}", code="bad-network")


_MAPPED_BITS: Final = 96
"""The length of ::ffff:0:0/96, which an IPv4 address follows (RFC 4291, 2.5.5.2)."""

_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]+|\[(.*)\](?::[0-9]+)?")
_NAME: Final = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]+(/.*)?")


def _plain(text: str) -> str:
    """`text` without spaces, interface, brackets and port, which belong to other kinds of addresses."""
    bare = re.sub(r"%[^/\]]*", "", text.strip())
    with_port = _WITH_PORT.fullmatch(bare)
    return bare if with_port is None else with_port[1] or with_port[2]


def _unreadable(text: str) -> str:
    """Why `text` is not a network, and what to write."""
    if _NAME.fullmatch(text):
        right = "127.0.0.1 and ::1" if text == "localhost" else "its numeric address, such as 192.168.1.7"
        return f"names are not looked up, write {right}"
    address, _slash, _bits = text.partition("/")
    try:
        most = ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return "write a numeric address, such as 192.168.1.7, 192.168.1.0/24 or 2001:db8::/32"
    return f"after the / write a number of bits, 0 to {most}"
