"""The commands for a client to use the shared devices.  Used by CLI and extension.

The address is one on which the daemon listens and which the clients that may use the device can reach: with a
listener for all addresses, those of this machine.  A device that no client can reach is reported as an error
of the configuration.
"""

import ipaddress
import shlex
import socket
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from usbipd.addresses import ListenAddress, Network, parse_listen
from usbipd.host_addresses import HostAddress
from usbipd.protocol.constants import USBIP_PORT

MOST_OTHERS: Final = 4
"""Number of further addresses that are shown."""
_TO_LISTEN: Final = (
    "to share with the network, set `listen` in usbipd.toml, or start the daemon with --listen ADDRESS: then "
    "anyone who can reach the port can use what is shared"
)


class Reachable(NamedTuple):
    """An address for clients: of a listener, and of an interface if it is known."""

    host: str
    port: int
    interface: str
    is_near: bool
    """Whether its network has clients that may use the device; others need a route to it."""


def client_commands(
    busids: Sequence[str],
    listening: Sequence[str],
    allow: Sequence[str],
    addresses: Sequence[HostAddress],
    user: str,
) -> list[str]:
    """The lines for the user; commands are indented by two spaces.

    `listening`: addresses with ports, as the daemon reports them; `allow`: networks that may use the devices,
    empty for all; `addresses`: those of this machine; `user`: a user who can log in to it.
    """
    listeners = [parse_listen(text) for text in listening]
    networks = [ipaddress.ip_network(network) for network in allow]
    if not listeners or not busids:
        return []
    if found := _reachable(listeners, networks, addresses):
        return _direct(busids, found, networks)
    local = [each for each in listeners if _is_local(each.host)]
    every = [each for each in listeners if ipaddress.ip_address(each.host).is_unspecified]
    for each in local or every:
        host = each.host if local else "::1" if ":" in each.host else "127.0.0.1"
        if not networks or any(ipaddress.ip_address(host) in network for network in networks):
            return _through_ssh(busids, ListenAddress(host, each.port), listeners, addresses, user)
    return [
        f"No client can use it: it is for {', '.join(allow)} only, and the daemon listens on "
        f"{', '.join(listening)}.",
        "hint: bind it again with another --allow, or have the daemon listen on an address that "
        "these clients reach: `listen` in usbipd.toml, or --listen",
    ]


def _direct(busids: Sequence[str], found: Sequence[Reachable], networks: Sequence[Network]) -> list[str]:
    best, others = found[0], found[1:]
    lines = ["On the client:", *(f"  {attach(best.host, best.port, busid)}" for busid in busids)]
    if others:
        shown = [f"{each.host}{f' ({each.interface})' if each.interface else ''}" for each in others]
        more = [f"{len(shown) - MOST_OTHERS} more"] if len(shown) > MOST_OTHERS else []
        lines.append(f"Other addresses of this machine: {', '.join(shown[:MOST_OTHERS] + more)}")
    if networks and not best.is_near:
        lines.append(
            f"No address of this machine is in {', '.join(map(str, networks))}: a client there needs a route "
            f"to {best.host}."
        )
    return lines


def _through_ssh(
    busids: Sequence[str],
    local: ListenAddress,
    listeners: Sequence[ListenAddress],
    addresses: Sequence[HostAddress],
    user: str,
) -> list[str]:
    host = next((each.host for each in _of_this_machine(addresses)), "HOST")
    only = all(_is_local(each.host) for each in listeners)
    reason = (
        f"The daemon listens on {', '.join(map(str, listeners))} only: no other machine can connect."
        if only
        else "Only clients on this machine may use it."
    )
    inner = f"[{local.host}]" if ":" in local.host else local.host
    return [
        f"{reason} Through a tunnel, on the client:",
        f"  ssh -N -L {USBIP_PORT}:{inner}:{local.port} {shlex.quote(f'{user}@{host}')} &",
        *(f"  {attach('127.0.0.1', USBIP_PORT, busid)}" for busid in busids),
        *([f"hint: {_TO_LISTEN}"] if only else []),
    ]


def attach(host: str, port: int, busid: str) -> str:
    """The command that attaches a device on a Linux client."""
    return f"sudo {usbip(port)} attach -r {host} -b {busid}"


def usbip(port: int) -> str:
    """usbip(8) for servers on this port; the option belongs to the program, not to its commands."""
    return "usbip" if port == USBIP_PORT else f"usbip --tcp-port {port}"


def address_for_clients(listener: ListenAddress, addresses: Sequence[HostAddress]) -> str:
    """The address of `listener` for a client; for all addresses, the first of this machine, else its name."""
    if not ipaddress.ip_address(listener.host).is_unspecified:
        return listener.host
    version = ipaddress.ip_address(listener.host).version
    hosts = [each.host for each in _of_this_machine(addresses) if (":" in each.host) == (version == 6)]
    return hosts[0] if hosts else socket.gethostname()


def _reachable(
    listeners: Iterable[ListenAddress], networks: Sequence[Network], addresses: Sequence[HostAddress]
) -> list[Reachable]:
    """The addresses for clients in these networks, the nearest first and link-local ones last."""
    found: dict[tuple[str, int], Reachable] = {}
    interfaces = {str(each.address.ip): each for each in addresses}
    for listener in listeners:
        wanted = ipaddress.ip_address(listener.host)
        if wanted.is_unspecified:
            hosts = [
                each for each in _of_this_machine(addresses) if (":" in each.host) == (wanted.version == 6)
            ]
        else:
            own = interfaces.get(listener.host.partition("%")[0])
            hosts = [Reachable(listener.host, 0, "" if own is None else own.interface, is_near=False)]
        for each in hosts:
            own = interfaces.get(each.host.partition("%")[0])
            if _is_local(each.host) or not _has_clients(each.host, networks):
                continue
            is_near = not networks or (
                own is not None and any(_overlap(network, own.address.network) for network in networks)
            )
            found[each.host, listener.port] = each._replace(port=listener.port, is_near=is_near)
    return sorted(found.values(), key=lambda each: (not each.is_near, _is_link_local(each.host)))


def _of_this_machine(addresses: Sequence[HostAddress]) -> list[Reachable]:
    """Its addresses except loopback, link-local ones last; for these a client must name its own interface."""
    hosts = [
        Reachable(
            f"{each.address.ip}%INTERFACE" if _needs_interface(each) else str(each.address.ip),
            USBIP_PORT,
            each.interface,
            is_near=True,
        )
        for each in addresses
        if not each.address.ip.is_loopback
    ]
    return sorted(hosts, key=lambda each: _is_link_local(each.host))


def _needs_interface(each: HostAddress) -> bool:
    return each.address.version == 6 and each.address.ip.is_link_local


def _has_clients(host: str, networks: Sequence[Network]) -> bool:
    """Whether a network has other machines with the same IP version."""
    version = 6 if ":" in host else 4
    return not networks or any(network.version == version and not network.is_loopback for network in networks)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _is_local(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _is_link_local(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_link_local
