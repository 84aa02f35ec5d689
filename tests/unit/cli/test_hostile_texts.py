"""Hostile texts in a daemon's answers never control the terminal, in any output."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.unit.ipc.test_texts import HOSTILE, hostile
from usbipd.__main__ import load_daemon
from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.cli.colour import SEQUENCE
from usbipd.errors import UsbipdError
from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message

Extension = Callable[..., AbstractContextManager[None]]

SUBCOMMANDS = [
    ("usbipd", "list"),
    ("usbipd", "bind", "--busid", "1-1"),
    ("usbipd", "unbind", "--busid", "1-1"),
    ("usbipd", "detach", "--busid", "1-1"),
    ("usbipd", "release", "1-1"),
    ("usbipd", "status"),
    ("usbipd", "history", "--limit", "1"),
    ("usbipd", "doctor"),
    ("usbipd-ext", "--status"),
    ("usbipd-ext", "--health"),
]


def answer(request: Request) -> Message:
    """A valid answer with hostile texts."""
    return hostile(PEOPLE.commands[request.command].result)  # type: ignore[no-any-return]


def refuse(request: Request) -> UsbipdError:
    return UsbipdError(HOSTILE, code=HOSTILE, advice=HOSTILE)


COLOURED = {"list", "status", "history", "doctor", "--status", "--health"}


@pytest.mark.parametrize("options", [(), ("--color", "always"), ("--json",)], ids=["text", "colour", "json"])
@pytest.mark.parametrize("reply", [answer, refuse])
@pytest.mark.parametrize("words", SUBCOMMANDS, ids=lambda words: " ".join(words[:2]))
def test_no_command_prints_raw_texts(
    words: tuple[str, ...],
    reply: Callable[[Request], Message | UsbipdError],
    options: tuple[str, ...],
    extension: Extension,
    socket_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--color" in options and words[1] not in COLOURED:
        pytest.skip("it has no states to colour")
    program, *arguments = *words, *options, "--socket", str(socket_path)
    with extension(reply):
        usbipd.main(arguments) if program == "usbipd" else ext.main(arguments, load_daemon)
    out, err = capsys.readouterr()
    assert "owned" in out + err, "this proves nothing"
    if "--color" in options:
        out = SEQUENCE.sub("", out)
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert not any(line.startswith("fake") for line in (out + err).split("\n"))
    if "--json" in options:
        json.loads(out)
