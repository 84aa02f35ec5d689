"""The addresses of this machine: those to which the kernel lets a socket bind."""

import socket

import pytest

from usbipd.host_addresses import host_addresses


def test_loopback_is_one_of_them() -> None:
    found = {str(each.address): each.interface for each in host_addresses()}
    assert found["127.0.0.1/8"].startswith("lo")


def test_a_socket_can_bind_to_each_of_them() -> None:
    for each in host_addresses():
        family = socket.AF_INET if each.address.version == 4 else socket.AF_INET6
        scope = (0, socket.if_nametoindex(each.interface)) if family == socket.AF_INET6 else ()
        with socket.socket(family) as trial:
            trial.bind((str(each.address.ip), 0, *scope))


def test_interfaces_and_networks() -> None:
    names = {name for _index, name in socket.if_nameindex()}
    for each in host_addresses():
        assert each.interface in names
        assert each.address.network.prefixlen <= each.address.max_prefixlen
        assert each.address.ip in each.address.network


def test_without_memory_the_list_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def getifaddrs(self, _first: object) -> int:
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_arguments, **_options: Libc())
    assert host_addresses() == []
