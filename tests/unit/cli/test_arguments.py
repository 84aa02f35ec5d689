"""The command lines: what is accepted, what is refused with which words."""

import argparse
from pathlib import Path

import pytest

from usbipd.cli import ext
from usbipd.cli.main import VERBS, build_parser
from usbipd.cli.verb import busid, host_and_port, seconds
from usbipd.errors import UsageError
from usbipd.simulated.catalog import NAMES


@pytest.mark.parametrize("text", ["1-1", "3-2.4", "255-15.15.15.15.15.15", "1-" + "1" * 29])
def test_busid(text: str) -> None:
    assert busid(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1-",
        "-1",
        "1-1.",
        "1-1..2",
        "1-1-1",
        "1-1\n",
        " 1-1",
        "1-1/..",
        "usb1",
        "²-1",
        "1-" + "1" * 30,
    ],
)
def test_not_a_busid(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="busid"):
        busid(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.org", ("example.org", 3240)),
        ("example.org:1", ("example.org", 1)),
        ("192.0.2.7:65535", ("192.0.2.7", 65535)),
        ("::1", ("::1", 3240)),
        ("fe80::1%eth0", ("fe80::1%eth0", 3240)),
        ("[::1]", ("::1", 3240)),
        ("[::1]:3241", ("::1", 3241)),
    ],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert host_and_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":3240",
        "host:",
        "host:0",
        "host:65536",
        "host:x",
        "host:-1",
        "host:٣",
        "[::1",
        "[]:1",
        "[::1]3240",
    ],
)
def test_not_a_host_and_port(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        host_and_port(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "3601", "soon", ""])
def test_not_a_time_span(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seconds"):
        seconds(text)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "VERB"),
        (["frob"], "frob"),
        (["bind"], "--busid"),
        (["bind", "--busid", "nonsense"], "not a busid"),
        (["bind", "1-1"], "--busid"),
        (["unbind"], "--busid --all"),
        (["unbind", "--busid", "1-1", "--all"], "not allowed with"),
        (["list", "--remote", "host:0"], "not a port"),
        (["list", "--rem", "host"], "--rem"),  # no abbreviations: a new option must not change an old command
    ],
)
def test_wrong_usage_of_usbipd(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        build_parser().parse_args(argv)
    assert caught.value.exit_code == 2
    assert caught.value.advice is not None
    assert "--help" in caught.value.advice


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
@pytest.mark.parametrize("before", [True, False])
def test_every_verb_takes_socket_and_json(verb: object, before: bool) -> None:
    name = verb.name  # type: ignore[attr-defined]
    needed = {"bind": ["--busid", "1-1"], "unbind": ["--all"]}.get(name, [])
    option = ["--socket", "/tmp/x"]
    argv = [*option, name, *needed, "--json"] if before else [name, *needed, "--json", *option]
    arguments = build_parser().parse_args(argv)
    assert str(arguments.socket) == "/tmp/x"
    assert arguments.json
    assert arguments.verb is verb


def test_list_needs_the_extension_unless_it_asks_another_machine() -> None:
    verb = build_parser().parse_args(["list"]).verb
    assert verb.requires_extension(build_parser().parse_args(["list"]))
    assert not verb.requires_extension(build_parser().parse_args(["list", "--remote", "host"]))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--run --status --version"),
        (["--run", "--status"], "not allowed with"),
        (["--run", "--json"], "--json goes with --status"),
        (["--status", "--listen", "::1"], "--listen goes with --run"),
        (["--status", "--real-devices"], "--real-devices goes with --run"),
        (["--run", "--simulate", "toaster"], "toaster"),
        (["--run", "--simulate", ""], "--simulate"),
        (["--run", "--listen", "localhost"], "localhost"),
        (["--run", "--log-level", "loud"], "loud"),
        (["--run", "--config", "/nonexistent/usbipd.toml"], "/nonexistent/usbipd.toml"),
    ],
)
def test_wrong_usage_of_usbipd_ext(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ext.run(argv)


def test_the_help_names_every_simulated_device() -> None:
    text = ext.build_parser().format_help()
    assert [name for name in NAMES if name not in text] == []


def test_the_command_line_wins_over_the_configuration(tmp_path: Path) -> None:
    file = str(tmp_path / "usbipd.toml")
    Path(file).write_text('listen = ["192.0.2.1"]\nlog_level = "warning"\n')
    parse = ext.build_parser().parse_args
    config = ext.configuration(parse(["--run", "--config", file]))
    assert (config.listen, config.log_level) == (("192.0.2.1",), "warning")
    config = ext.configuration(
        parse(
            ["--run", "--config", file, "--listen", "::1", "--listen", "127.0.0.1:0", "--log-level", "debug"]
        )
    )
    assert (config.listen, config.log_level) == (("[::1]:3240", "127.0.0.1:0"), "debug")
