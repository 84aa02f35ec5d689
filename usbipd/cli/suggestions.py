"""Suggestions for commands and options that do not exist.  Runs in the caller's process.

Loaded only if a command line is wrong.  Covers the commands of other programs: usbipd-win
(https://github.com/dorssel/usbipd-win, `usbipd --help`), usbip(8) and usbipd(8) of the Linux kernel
(tools/usb/usbip), and docker(1).
"""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

from usbipd.errors import UsageError

_ATTACH: Final = "on the client: `sudo usbip attach -r HOST -b BUSID`; here, `usbipd bind DEVICE` shares one"
_DAEMON: Final = "the daemon is `sudo usbipd-ext --run`"

_DEVICE: Final = re.compile(r"[0-9]+-[0-9.]+|[0-9a-fA-F]{4}:[0-9a-fA-F]{4}")

OTHER_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "attach": ("a device is attached on the client that uses it, not on its host", _ATTACH),
    "auto-attach": ("a device is attached on the client that uses it, not on its host", _ATTACH),
    "connect": ("a device is attached on the client that uses it, not on its host", _ATTACH),
    "wsl": ("a device is attached on the client, here WSL, not on its host", _ATTACH),
    "share": ("devices are shared with `bind`", "`usbipd bind DEVICE`"),
    "add": ("devices are shared with `bind`", "`usbipd bind DEVICE`"),
    "unshare": ("devices are unshared with `unbind`", "`usbipd unbind DEVICE`"),
    "remove": ("devices are unshared with `unbind`", "`usbipd unbind DEVICE`"),
    "rm": ("devices are unshared with `unbind`", "`usbipd unbind DEVICE`"),
    "disconnect": ("a client is cut off with `detach`", "`usbipd detach DEVICE`"),
    "port": (
        "ports are listed on the client",
        "on the client: `usbip port`; here, `usbipd status` shows clients",
    ),
    "ls": ("devices are listed with `list`", "`usbipd list`"),
    "devices": ("devices are listed with `list`", "`usbipd list`"),
    "ps": ("shared devices are shown by `status`", "`usbipd status`"),
    "info": ("shared devices are shown by `status`", "`usbipd status`"),
    "state": ("the state is printed by `list` and `status`", "for programs: `usbipd list --json`"),
    "top": ("live traffic is shown by `status --watch`", "`usbipd status --watch`"),
    "stats": ("live traffic is shown by `status --watch`", "`usbipd status --watch`"),
    "events": ("past events are shown by `history`", "`usbipd history`"),
    "log": (
        "past events are shown by `history`",
        "`usbipd history`; the log is written by the daemon",
    ),
    "logs": (
        "past events are shown by `history`",
        "`usbipd history`; the log is written by the daemon",
    ),
    "health": ("the daemon is checked with `doctor`", "`usbipd doctor`"),
    "check": ("the daemon is checked with `doctor`", "`usbipd doctor`"),
    "policy": (
        "usbipd has no policies: each binding lists the networks that may use it",
        "`usbipd bind DEVICE --allow NETWORK`; for all devices, `allow` in usbipd.toml",
    ),
    "server": ("the server is part of the daemon", _DAEMON),
    "daemon": ("the daemon is a separate command", _DAEMON),
    "run": ("the daemon is a separate command", _DAEMON),
    "start": ("the daemon is a separate command", _DAEMON),
    "license": ("usbipd has the MIT licence", "its text is in the file LICENSE of the source"),
    "version": ("the version is an option", "`usbipd --version`"),
}
"""Each command: why it does not exist here, and what to try."""

_OPTIONS_OF_DAEMONS: Final = (
    *("-D", "--daemon", "-4", "-6", "-d", "--debug", "-P", "--pid", "-t", "--tcp-port"),  # usbipd(8)
    *("--run", "--listen", "--simulate"),  # our own
)

OTHER_OPTIONS: Final[Mapping[tuple[str, str], str]] = {
    **dict.fromkeys(
        (("usbipd", option) for option in ("-D", "--daemon", "-4", "-6", "-P", "--pid")), _DAEMON
    ),
    **dict.fromkeys((("usbipd", option) for option in ("-t", "--tcp-port", "-d", "--debug")), _DAEMON),
    **dict.fromkeys((("usbipd", option) for option in ("--run", "--listen", "--simulate")), _DAEMON),
    ("usbipd", "--status"): "`usbipd status`, or with processes `usbipd-ext --status`",
    ("usbipd", "--health"): "`usbipd doctor`",
    ("usbipd", "--check-config"): "`usbipd-ext --check-config`",
    ("usbipd list", "-l"): "without an option, `usbipd list` shows the devices of this machine",
    ("usbipd list", "--local"): "without an option, `usbipd list` shows the devices of this machine",
    ("usbipd list", "-p"): "for programs: `usbipd list --json`",
    ("usbipd list", "--parsable"): "for programs: `usbipd list --json`",
    ("usbipd detach", "-p"): "on the client: `sudo usbip detach -p PORT`; here, `usbipd detach DEVICE`",
    ("usbipd detach", "--port"): "on the client: `sudo usbip detach -p PORT`; here, `usbipd detach DEVICE`",
    (
        "usbipd detach",
        "-a",
    ): "name the devices: `usbipd detach DEVICE...`; `usbipd unbind --all` stops sharing",
    (
        "usbipd detach",
        "--all",
    ): "name the devices: `usbipd detach DEVICE...`; `usbipd unbind --all` stops sharing",
    (
        "usbipd unbind",
        "--guid",
    ): "a binding is named by its port, VID:PID or part of its name: `usbipd list`",
    ("usbipd unbind", "-g"): "a binding is named by its port, VID:PID or part of its name: `usbipd list`",
    ("usbipd status", "-w"): "`usbipd status --watch`",
    ("usbipd history", "-n"): "`usbipd history --limit N`",
}
"""What to try, by command and option."""


def unknown_command(name: str, known: Collection[str]) -> UsageError:
    """The error for a command that does not exist, with the nearest one that does."""
    near = _nearest(name, [*known, *OTHER_COMMANDS])
    if near is not None and near in OTHER_COMMANDS:
        message, advice = OTHER_COMMANDS[near]
        return UsageError(f"unknown command {name!r}: {message}", code="usage", advice=advice)
    if _DEVICE.fullmatch(name):
        advice = f"to share a device: `usbipd bind {name}`"
    elif near is not None:
        advice = f"did you mean `usbipd {near}`?"
    else:
        advice = "`usbipd help` lists the commands"
    return UsageError(f"unknown command {name!r}", code="usage", advice=advice)


def unknown_option(prog: str, option: str, known: Collection[str], elsewhere: Collection[str]) -> UsageError:
    """The error for an unknown option of `prog`; `elsewhere`: the options that go after a command."""
    name, _equals, _value = option.partition("=")
    command = prog.partition(" ")[2]
    message = f"{command} has no option {name}" if command else f"unknown option {name}"
    advice = OTHER_OPTIONS.get((prog, name))
    if advice is None and name in elsewhere:
        advice = f"it goes after the command: `{prog} COMMAND {option}`"
    if advice is None and (near := _nearest(name, [*known, *sorted(elsewhere)])) is not None:
        meant = near if near in known else f"`{prog} COMMAND {near}`"
        advice = f"did you mean {meant}?  See `{prog} --help`"
    return UsageError(message, code="usage", advice=advice or f"see `{prog} --help`")


def unexpected_argument(prog: str, argument: str, options: Collection[str]) -> UsageError:
    """The error for an argument that `prog` does not take."""
    command = prog.partition(" ")[2]
    message = f"{command} does not take {argument!r}" if command else f"unknown command {argument!r}"
    if f"--{argument}" in options:
        return UsageError(message, code="usage", advice=f"did you mean --{argument}?  See `{prog} --help`")
    if prog == "usbipd-ext":
        return UsageError(message, code="usage", advice="commands belong to usbipd: see `usbipd --help`")
    return UsageError(message, code="usage", advice=f"see `{prog} --help`")


def _nearest(word: str, known: Collection[str]) -> str | None:
    """The name in `known` that is most similar to `word`; None if none is similar enough."""
    same = [each for each in known if each.casefold() == word.casefold()]
    candidates = [each for each in known if each.startswith("--") or not each.startswith("-")]
    near = same or difflib.get_close_matches(word, candidates, 1, 0.6)
    return near[0] if near else None
