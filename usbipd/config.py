"""`usbipd.toml`: how the daemon shall behave.  Read by the extension; never written.

Every key has a default; an unknown key or a bad value is a `UsageError` that names the file, the key and
what would be right.
"""

import difflib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from usbipd.errors import UsageError
from usbipd.protocol.constants import USBIP_PORT


class ListenAddress(NamedTuple):
    """A numeric address and a TCP port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> ListenAddress:
    """`A.B.C.D`, `A.B.C.D:PORT`, `IPv6`, `[IPv6]` or `[IPv6]:PORT`.

    Raises `UsageError` on all else, and on addresses to which no client can connect.
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
    return ListenAddress(str(address), number)


_BROADCAST: Final = ipaddress.IPv4Address("255.255.255.255")


SMALLEST_BUDGET: Final = 40 << 20
"""Bytes: one URB of the largest size fits, and some; the pump has the same (cython/pump.pyx)."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table `[limits]`: what one client or all of them may use."""

    max_connections: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 128
    """Connections that have not been given to a worker yet, in total."""
    max_connections_per_address: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    """The same from one client address."""
    handshake_timeout: Annotated[float, msgspec.Meta(gt=0, le=300)] = 10.0
    """Seconds from connect to the end of OP_REQ_*."""
    transfer_budget: Annotated[int, msgspec.Meta(ge=SMALLEST_BUDGET, le=1 << 32)] = 64 << 20
    """Bytes that the URBs of one client may hold."""


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    listen: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)] = ("127.0.0.1",)
    """Where clients may connect."""
    user: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """Who server and workers become when the extension is root; None: the platform's default."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: Limits = Limits()

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        return tuple(parse_listen(text) for text in self.listen)


_TABLES: Final[dict[str, type[msgspec.Struct]]] = {"": ServerConfig, "limits": Limits}


def load(path: Path) -> ServerConfig:
    """The configuration in the file at `path`.  Raises `UsageError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", code="bad-config") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})", code="bad-config") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> ServerConfig:
    """The configuration in `text`; `source` names it in errors.  Raises `UsageError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source}: not TOML: {error}", code="bad-config") from error
    for name, table in _TABLES.items():
        content = document.get(name, {}) if name else document
        if isinstance(content, dict):
            _refuse_unknown_keys(content, table, name, source)
    try:
        config = msgspec.convert(document, ServerConfig)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise UsageError(f"{source}: {where.rstrip('`')}: {_lower(what)}", code="bad-config") from error
    for index, listen in enumerate(config.listen):
        try:
            parse_listen(listen)
        except UsageError as error:
            raise UsageError(f"{source}: listen[{index}]: {error}", code="bad-config") from error
    return config


def _refuse_unknown_keys(content: dict[str, Any], kind: type[msgspec.Struct], name: str, source: str) -> None:
    known = kind.__struct_fields__
    for key in content.keys() - set(known):
        close = difflib.get_close_matches(key, known, 1)
        right = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        where = f"{name}.{key}" if name else key
        raise UsageError(f"{source}: unknown key {where}: {right}", code="bad-config")


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
