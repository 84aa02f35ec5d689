"""The configuration of the daemon, `usbipd.toml`.  Read by the extension; never written.

Every key has a default; an unknown key or a bad value is a `UsageError` that names the file, the line if
known, the key and what would be right.
"""

import difflib
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from usbipd import log, paths, privileges
from usbipd.addresses import ListenAddress, parse_listen, parse_network, refuse_overlap
from usbipd.errors import UsageError
from usbipd.ipc.children import Sandbox
from usbipd.ipc.control_messages import DeviceMemory, Serial
from usbipd.trusted_file import UntrustedError, open_trusted
from usbipd.usb.identity import DeviceRule, parse_busid, parse_hardware_id
from usbipd.worker_uids import DEFAULT_UIDS, parse_uids

SMALLEST_BUDGET: Final = 40 << 20
"""Bytes: enough for one URB of the largest size and some more; the same as in the pump (cython/pump.pyx)."""

SHORTEST_LOST: Final = 10
"""Seconds: below it, the pause between probes would not be a whole number (server/keepalive.py)."""
LONGEST_LOST: Final = 7200
"""Seconds: the default of Linux and macOS before the first probe."""

Networks = Annotated[tuple[str, ...], msgspec.Meta(max_length=256)]
"""Texts for `parse_network`, as many as fit into one message to the server."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table `[limits]`: what one client, or all together, may use."""

    max_connections: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 128
    """Connections not yet handed to a worker, in total."""
    max_connections_per_address: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    """The same from one client address; IPv6: from one /64 (`addresses.source_of`)."""
    handshake_timeout: Annotated[float, msgspec.Meta(gt=0, le=300)] = 10.0
    """Seconds from connect until OP_REQ_* is complete."""
    lost_client_timeout: Annotated[int, msgspec.Meta(ge=SHORTEST_LOST, le=LONGEST_LOST)] = 120
    """Seconds after which an unresponsive client is disconnected (usbipd/server/keepalive.py)."""
    transfer_budget: Annotated[int, msgspec.Meta(ge=SMALLEST_BUDGET, le=1 << 32)] = 64 << 20
    """Bytes that the URBs of one client may occupy."""
    device_memory: DeviceMemory = "auto"
    """Whether large transfers use memory that the device accesses without a copy (cython/pool.pxi)."""
    send_buffer: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0
    """Send buffer per client in bytes (SO_SNDBUF); 0 is the kernel's default."""


class AccessRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table `[[access]]`: the clients of the devices that it matches.  All matching tables apply."""

    busid: str | None = None
    hardware_id: str | None = None
    """VID:PID.  At least one of busid and hardware_id is set."""
    serial: Serial | None = None
    allow: Networks = ()
    """Never empty."""

    @property
    def rule(self) -> DeviceRule:
        """The devices that the table matches."""
        vendor_id, product_id = (
            (None, None) if self.hardware_id is None else parse_hardware_id(self.hardware_id)
        )
        return DeviceRule(vendor_id, product_id, self.serial, self.busid)


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    listen: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)] = ("127.0.0.1",)
    """Addresses on which the server listens."""
    allow: Networks = ()
    """Addresses from which clients may connect; empty for all."""
    user: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """User of the server when the extension is root; None for the platform's default."""
    worker_uids: str = DEFAULT_UIDS
    """User ids of the workers when the extension is root: `FIRST-LAST`."""
    confine: Sandbox = "auto"
    """Confinement of processes.  auto: as far as this host can; require: fully, else they do not start; off:
    workers run unconfined."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_to: str = "stderr"
    """`stderr`, `syslog`, or the absolute path of a file."""
    offer_imported: bool = False
    """Whether devices that this host has imported by vhci-hcd may be bound (usbipd/usb/sysfs_devices.py)."""
    limits: Limits = Limits()
    access: Annotated[tuple[AccessRule, ...], msgspec.Meta(max_length=256)] = ()

    @property
    def uids(self) -> range:
        """The workers' user ids."""
        return parse_uids(self.worker_uids)

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        return tuple(parse_listen(text) for text in self.listen)


_PLACES: Final[dict[str, type[msgspec.Struct]]] = {
    "above all tables": ServerConfig,
    "in [limits]": Limits,
    "in [[access]]": AccessRule,
}
"""The keys of each place."""

_RIGHT: Final = {
    "listen": 'listen = ["127.0.0.1", "[::1]:3240"]',
    "allow": 'allow = ["192.168.1.0/24", "::1"]',
    "user": 'user = "usbipd"',
    "worker_uids": f'worker_uids = "{DEFAULT_UIDS}"',
    "confine": '"auto", "require" or "off"',
    "log_level": '"debug", "info", "warning" or "error"',
    "log_to": '"stderr", "syslog" or "/var/log/usbipd.log"',
    "offer_imported": "offer_imported = true, or false",
    "limits": "[limits]",
    "access": "[[access]]",
    "max_connections": "max_connections = 128",
    "max_connections_per_address": "max_connections_per_address = 32",
    "handshake_timeout": "handshake_timeout = 10.0",
    "lost_client_timeout": "lost_client_timeout = 120",
    "transfer_budget": f"transfer_budget = {64 << 20}",
    "device_memory": '"auto", "on" or "off"',
    "send_buffer": "send_buffer = 0",
    "busid": 'busid = "1-1"',
    "hardware_id": 'hardware_id = "0781:5567"',
    "serial": 'serial = "4C530001"',
}
"""An example of a right value for each key."""


def load(path: Path) -> ServerConfig:
    """The configuration in the file at `path`, for this host: its user exists.

    Root reads it only from a file that no other user can change.  Raises `UsageError`.
    """
    try:
        with os.fdopen(open_trusted(path, os.O_RDONLY), encoding="utf-8") as file:
            text = file.read()
    except UntrustedError as error:
        if path.is_char_device():  # such as /dev/null, which every user can write
            raise UsageError(f"{path}: not a regular file", code="bad-config") from error
        raise UsageError(
            f"{path}: refusing to read it: {error}",
            code="bad-config",
            advice="move it to a path where only root can modify the file and its parent directories, "
            f"such as {paths.config_file()}",
        ) from error
    except OSError as error:
        # Linux has links to pipes, such as /dev/stdin, whose targets have no path.
        if isinstance(error, FileNotFoundError) and path.exists():
            raise UsageError(
                f"{path}: it leads to a pipe or another open file without a name, so root's daemon cannot "
                "check who else can write to it",
                code="bad-config",
                advice=f"name a file that only root can change, such as {paths.config_file()}",
            ) from error
        raise UsageError(f"{path}: {error.strerror}", code="bad-config") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start})", code="bad-config") from error
    config = parse(text, str(path))
    if config.user is not None:
        _parse(_File(text, str(path)), "user", privileges.find_user, config.user)
    return config


def parse(text: str, source: str) -> ServerConfig:
    """The configuration in `text`; `source` names it in errors.  Raises `UsageError`."""
    if text.startswith("\N{BYTE ORDER MARK}"):
        raise UsageError(
            f"{source}: starts with a byte order mark (BOM): save it as UTF-8 without one", code="bad-config"
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib also raises others than TOMLDecodeError
        raise UsageError(f"{source}: not TOML: {_explain(text, str(error))}", code="bad-config") from error
    file = _File(text, source)
    for where, table, kind in _tables(document):
        _refuse_unknown_keys(file, where, table, kind)
    try:
        config = msgspec.convert(document, ServerConfig)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`object`", "`table`").rpartition(" - at `$.")
        where = where.rstrip("`")
        key = _without_index(where).rpartition(".")[2]
        raise file.wrong(where, f"{what[:1].lower()}{what[1:]}: write {_RIGHT[key]}") from error
    _check(file, config)
    return config


@dataclass(frozen=True, slots=True)
class _File:
    text: str
    source: str

    def wrong(self, where: str, what: str) -> UsageError:
        line = _line_of(where, self.text)
        place = self.source if line is None else f"{self.source}, line {line}"
        return UsageError(f"{place}: {where}: {what}", code="bad-config")


def _tables(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], type[msgspec.Struct]]]:
    """Every table, with its place."""
    yield "", document, ServerConfig
    if isinstance(limits := document.get("limits"), dict):
        yield "limits", limits, Limits
    if isinstance(access := document.get("access"), list):
        for index, table in enumerate(access):
            if isinstance(table, dict):
                yield f"access[{index}]", table, AccessRule


def _refuse_unknown_keys(file: _File, where: str, table: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    known = kind.__struct_fields__
    for key in table:
        if key in known:
            continue
        elsewhere = next((place for place, other in _PLACES.items() if key in other.__struct_fields__), None)
        if elsewhere is not None:
            right = f"it belongs {elsewhere}"
        elif close := difflib.get_close_matches(key, known, 1):
            right = f"did you mean {close[0]!r}?"
        else:
            right = f"known keys are {', '.join(known)}"
        shown = key if _BARE_KEY.fullmatch(key) else repr(key)
        raise file.wrong(f"{where}.{shown}" if where else shown, f"unknown key: {right}")


def _check(file: _File, config: ServerConfig) -> None:
    """Rules that the types do not express.  Raises `UsageError`."""
    for index, address in enumerate(config.listen):
        _parse(file, f"listen[{index}]", parse_listen, address)
    for index, network in enumerate(config.allow):
        _parse(file, f"allow[{index}]", parse_network, network)
    _parse(file, "worker_uids", parse_uids, config.worker_uids)
    try:
        refuse_overlap(config.addresses)
    except UsageError as error:
        raise file.wrong("listen", str(error)) from error
    _parse(file, "log_to", log.check_destination, config.log_to)
    for number, rule in enumerate(config.access):
        where = f"access[{number}]"
        if rule.busid is None and rule.hardware_id is None:
            also = " beside the serial number" if rule.serial is not None else ""
            raise file.wrong(where, f"it matches no device: write busid or hardware_id, or both{also}")
        if rule.busid is not None:
            _parse(file, f"{where}.busid", parse_busid, rule.busid)
        if rule.hardware_id is not None:
            _parse(file, f"{where}.hardware_id", parse_hardware_id, rule.hardware_id)
        if not rule.allow:
            raise file.wrong(where, f"it allows no client: write {_RIGHT['allow']}")
        for index, network in enumerate(rule.allow):
            _parse(file, f"{where}.allow[{index}]", parse_network, network)


def _parse(file: _File, where: str, parse_one: Callable[[str], object], text: str) -> None:
    try:
        parse_one(text)
    except UsageError as error:
        raise file.wrong(where, str(error)) from error


# ---- lines -----------------------------------------------------------------------------------------------
#
# tomllib reports the line of a syntax error and of nothing else.  In a document that it has accepted, a line
# that begins with `key =` sets that key, unless it is inside a multi-line string.

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ASSIGNMENT: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_-]+)\s*\]\]?\s*(?:#.*)?")


def _line_of(where: str, text: str) -> int | None:
    """The line that sets the key or opens the table `where`, such as `access[1].busid`; for an element, the
    line where its list begins.  None if it is written in another way."""
    if '"""' in text or "'''" in text:
        return None
    places: dict[str, int] = {}
    opened: Counter[str] = Counter()
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        if assignment := _ASSIGNMENT.match(line):
            places[table + assignment[1]] = number
        elif line.lstrip().startswith("["):
            header = _HEADER.fullmatch(line)
            if header is None:  # an unknown table, or a part of a list
                table = "?."
                continue
            name = header[2]
            if header[1] == "[[":
                name = f"{name}[{opened[name]}]"
                opened[header[2]] += 1
            places[name] = number
            table = f"{name}."
    return places.get(where) or places.get(_without_index(where)) or places.get(f"{where}[0]")


def _without_index(where: str) -> str:
    return re.sub(r"\[[0-9]+\]$", "", where)


def _explain(text: str, error: str) -> str:
    """tomllib's message, always with the line, and with what would be right if the line shows it."""
    lines = text.split("\n")
    error = error.replace("at end of document", f"at the end, line {len(lines)}")
    place = re.search(r"^Invalid value \(at (?:line|the end, line) ([0-9]+)", error)
    assignment = place and _ASSIGNMENT.match(lines[int(place[1]) - 1])
    right = assignment and _RIGHT.get(assignment[1])
    return f"{error}: write {right}" if right else error
