"""A second machine, for TCP: a network namespace behind a cable.  Runs in the guest."""

from typing import Final

from tests.e2e.guest.system import run

ELSEWHERE: Final = ("ip", "netns", "exec", "elsewhere")
"""Prefix of a command that runs there."""
NEAR, FAR = "10.99.0.1", "10.99.0.2"
"""Addresses of this machine and of the second one."""


def connect() -> None:
    """Create the namespace and the cable."""
    run("ip", "netns", "add", "elsewhere")
    run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", "elsewhere")
    run("ip", "addr", "add", f"{NEAR}/24", "dev", "near")
    run("ip", "link", "set", "near", "up")
    run(*ELSEWHERE, "ip", "addr", "add", f"{FAR}/24", "dev", "far")
    run(*ELSEWHERE, "ip", "link", "set", "far", "up")


def disconnect() -> None:
    """Pull the cable at the second machine: no process is notified."""
    run(*ELSEWHERE, "ip", "link", "set", "far", "down")
