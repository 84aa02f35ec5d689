"""The addresses from which clients may connect.  The server checks at accept, the extension for each device.

An access list keeps strangers away from an open port.  It is not a login: it admits anyone who sends from an
allowed address.
"""

import ipaddress
from collections.abc import Sequence

from usbipd.addresses import parse_network


class AccessList:
    """The admitted addresses and networks; an empty list admits all."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Each text is one for `parse_network`.  Raises `UsageError`."""
        self._networks = tuple(parse_network(text) for text in networks)

    def allows(self, address: str) -> bool:
        """Whether a client from this numeric address, without a port, is admitted.

        Ignores an interface after `%`, and treats ::ffff:A.B.C.D as A.B.C.D.  Only an empty list admits a
        text that is not an address.
        """
        if not self._networks:
            return True
        try:
            client = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(client, ipaddress.IPv6Address):
            client = client.ipv4_mapped or client
        return any(client in network for network in self._networks)
