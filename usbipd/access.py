"""Which addresses clients may come from.  The server asks at accept, the extension for each device.

An access list keeps strangers away from an open port.  It is no login: whoever sends from an allowed address
is let in.
"""

import ipaddress
from collections.abc import Sequence

from usbipd.addresses import parse_network


class AccessList:
    """Addresses and networks that are let in; none of them: everybody is."""

    def __init__(self, networks: Sequence[str]) -> None:
        """Takes what `parse_network` takes.  Raises `UsageError`."""
        self._networks = tuple(parse_network(text) for text in networks)

    def allows(self, address: str) -> bool:
        """Whether a client from this numeric address, without a port, is let in.

        An interface behind `%` does not matter, and ::ffff:A.B.C.D is A.B.C.D.  What is no address is let in
        only where everybody is.
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
