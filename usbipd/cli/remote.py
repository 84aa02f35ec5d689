"""Fetches the device list of any USB/IP server.  Runs in the caller's process."""

import socket
import time
from typing import Final

from usbipd.addresses import ListenAddress, with_brackets
from usbipd.errors import ProtocolError, UsbipdError
from usbipd.protocol.constants import ST_OK
from usbipd.protocol.op import DevlistReplyReader, UsbDevice, encode_devlist_request

_NOT_USBIP: Final = "a USB/IP server of another version, or another program, may listen there: check the port"
_CLOSED: Final = "the server may refuse this address, or have too many connections: check its log"


def fetch_devlist(host: str, port: int, timeout: float) -> tuple[UsbDevice, ...]:
    """The devices that the server at `host`:`port` shares, within `timeout` seconds in total.

    Raises `UsbipdError`: no connection, no answer in time, or an answer that is not USB/IP 1.1.1.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    deadline = time.monotonic() + timeout
    meant = with_brackets(ListenAddress(host, port))
    brackets = None if meant is None else f"an IPv6 address with a port is written in brackets: {meant}"
    try:
        connection = socket.create_connection((host, port), timeout)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no such name can exist, as in "a..b"
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise UsbipdError(
            f"cannot find the host {host}: {reason}",
            code="host-not-found",
            advice="check the name; an IPv6 address with a port is written [ADDRESS]:PORT",
        ) from error
    except TimeoutError as error:
        raise _timed_out(where, timeout, brackets) from error
    except ConnectionRefusedError as error:
        raise UsbipdError(
            f"{where} refused the connection: nothing listens there",
            code="refused",
            advice=brackets or "check that the USB/IP server is running and listens on more than loopback",
        ) from error
    except OSError as error:
        raise UsbipdError(
            f"cannot connect to {where}: {error.strerror}",
            code="unreachable",
            advice=brackets or "check that the network and firewalls allow TCP to that port",
        ) from error
    with connection:
        try:
            return _converse(connection, where, deadline)
        except TimeoutError as error:
            raise _timed_out(where, timeout) from error
        except ProtocolError as error:
            raise ProtocolError(
                f"{where} does not answer as a USB/IP 1.1.1 server: {error.message}",
                code="not-usbip",
                advice=_NOT_USBIP,
            ) from error
        except OSError as error:
            raise UsbipdError(
                f"lost the connection to {where}: {error.strerror}", code="lost", advice=_CLOSED
            ) from error


def _converse(connection: socket.socket, where: str, deadline: float) -> tuple[UsbDevice, ...]:
    connection.sendall(encode_devlist_request())
    reader = DevlistReplyReader()
    received = 0
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        data = connection.recv(reader.wanted)
        if not data:
            raise UsbipdError(
                f"{where} closed the connection after {received} bytes of its answer",
                code="lost",
                advice=_CLOSED,
            )
        received += len(data)
        reply = reader.feed(data)
        if reply is None:
            continue
        if reply.status != ST_OK:
            raise UsbipdError(f"{where} does not list its devices: status {reply.status}", code="no-list")
        return reply.devices


def _timed_out(where: str, timeout: float, advice: str | None = None) -> UsbipdError:
    return UsbipdError(
        f"{where} did not answer within {timeout:g} s",
        code="timed-out",
        advice=advice
        or "a firewall may drop the packets, or another program may listen there; --timeout waits longer",
    )
