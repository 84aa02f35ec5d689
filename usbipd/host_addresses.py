"""The addresses of this machine, by interface.  Used by CLI and extension.

From getifaddrs(3) of Linux and macOS, which Python does not offer.  The layouts are those of <ifaddrs.h>,
<sys/socket.h> and <netinet/in.h> of both: on macOS the first byte of a socket address is its length and the
second is its family.
"""

import ctypes
import ipaddress
import socket
import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_IFF_UP: Final = 0x1  # <net/if.h>, the same on both
_IFF_RUNNING: Final = 0x40

_LENGTH_OF: Final = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""The offset of the address in a sockaddr_in and a sockaddr_in6, and its length in bytes."""


class HostAddress(NamedTuple):
    """An address of this machine with its network, and its interface."""

    address: Interface
    interface: str


class _Entry(ctypes.Structure):
    """struct ifaddrs, up to the last field that is read here."""


_Entry._fields_ = [
    ("ifa_next", ctypes.POINTER(_Entry)),
    ("ifa_name", ctypes.c_char_p),
    ("ifa_flags", ctypes.c_uint),
    ("ifa_addr", ctypes.c_void_p),
    ("ifa_netmask", ctypes.c_void_p),
]


def host_addresses() -> list[HostAddress]:
    """The addresses of interfaces that are up and have a link, in system order; none if out of memory."""
    libc = ctypes.CDLL(None)
    first = ctypes.POINTER(_Entry)()
    if libc.getifaddrs(ctypes.byref(first)) != 0:
        return []
    try:
        return list(_addresses(first))
    finally:
        libc.freeifaddrs(first)


def _addresses(entry: "ctypes._Pointer[_Entry]") -> Iterator[HostAddress]:
    while entry:
        found = entry.contents
        if found.ifa_flags & _IFF_UP and found.ifa_flags & _IFF_RUNNING and found.ifa_addr:
            family = _family(found.ifa_addr)
            if family in _LENGTH_OF:
                address = _read(found.ifa_addr, family)
                mask = _read(found.ifa_netmask, family) if found.ifa_netmask else b"\xff" * len(address)
                prefix = sum(byte.bit_count() for byte in mask)
                yield HostAddress(
                    ipaddress.ip_interface((address, prefix)), found.ifa_name.decode(errors="replace")
                )
        entry = found.ifa_next


def _family(address: int) -> int:
    if sys.platform == "darwin":
        return ctypes.string_at(address, 2)[1]
    return ctypes.c_ushort.from_address(address).value


def _read(address: int, family: int) -> bytes:
    offset, length = _LENGTH_OF[socket.AddressFamily(family)]
    if sys.platform == "darwin":  # a netmask on macOS omits trailing zero bytes
        stored = ctypes.string_at(address, 1)[0]
        return ctypes.string_at(address, stored)[offset : offset + length].ljust(length, b"\0")
    return ctypes.string_at(address + offset, length)
