"""`usbipd-ext --check-config`: reads the configuration as the daemon would.  Runs in the caller's process."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from usbipd import paths, privileges
from usbipd.cli.documents import Document, render
from usbipd.cli.output import emit, say
from usbipd.config import ServerConfig, load
from usbipd.errors import UsageError
from usbipd.host_needs import check_host
from usbipd.text import readable


class ConfigDocument(Document, frozen=True, kw_only=True):
    """`usbipd-ext --check-config --json`."""

    file: str | None
    settings: ServerConfig


def check_config(named: Path | None, *, as_json: bool) -> None:
    """Print the settings that the daemon would use with the file `named`, or else the usual one.

    Raises `UsageError` as the daemon would.
    """
    if os.geteuid() != 0:
        say(f"checked as {privileges.user_name(os.geteuid())}, not as root")
    file = named or usual_file()
    config = ServerConfig() if file is None else load(file)
    if named is not None or os.geteuid() == 0:  # else the daemon runs as root, with more rights
        try:
            check_host(config)
        except UsageError as error:
            where = "the defaults" if file is None else file
            raise UsageError(f"{where}: {error.message}", code=error.code, advice=error.advice) from error
    settings = msgspec.structs.replace(config, listen=tuple(str(address) for address in config.addresses))
    if as_json:
        emit(render(ConfigDocument(file=None if file is None else str(file), settings=settings)))
        return
    verdict = f"{paths.config_file()} does not exist: the defaults apply" if file is None else f"{file}: ok"
    lines = [verdict, "", *_toml(msgspec.to_builtins(settings))]
    emit("".join(f"{readable(line)}\n" for line in lines))


def usual_file() -> Path | None:
    """The file that root's daemon reads without --config; None if it does not exist."""
    file = paths.config_file()
    return file if os.path.lexists(file) else None


def _toml(content: Mapping[str, Any]) -> Iterator[str]:
    """`content` as lines of TOML."""
    nested: list[tuple[str, Mapping[str, Any]]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            nested.append((f"[{key}]", value))
        elif value and isinstance(value, list | tuple) and isinstance(value[0], dict):
            nested += [(f"[[{key}]]", each) for each in value]
        elif value is not None:
            yield f"{key} = {msgspec.json.encode(value).decode()}"
    for title, each in nested:
        yield ""
        yield title
        yield from _toml(each)
