"""The command lines: what is accepted, what is refused with which words."""

import argparse
import os
from pathlib import Path

import pytest

from usbipd.__main__ import load_daemon
from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.cli.arguments import count, host_and_port, interval, network, seconds
from usbipd.cli.device_arguments import Selector, parse_device, serial
from usbipd.cli.main import SUBCOMMANDS, build_parser, load
from usbipd.errors import UsageError
from usbipd.ipc.control_messages import HardwareId
from usbipd.simulated.catalog import NAMES


@pytest.mark.parametrize("text", ["1-1", "3-2.4", "255-15.15.15.15.15.15", "1-" + "1" * 29])
def test_busid(text: str) -> None:
    assert build_parser().parse_args(["detach", "--busid", text]).busid == text


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
    with pytest.raises(UsageError, match="busid"):
        build_parser().parse_args(["detach", f"--busid={text}"])


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


@pytest.mark.parametrize("text", ["0.1", "1", "3600"])
def test_an_interval(text: str) -> None:
    assert interval(text) == float(text)


@pytest.mark.parametrize("text", ["0", "0.09", "3601", "nan", "often"])
def test_not_an_interval(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"0\.1 to 3600"):
        interval(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "٣", "1" * 10, ""])
def test_not_a_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        count(text)


@pytest.mark.parametrize("text", ["S", "日" * 126])
def test_a_serial_number(text: str) -> None:
    assert serial(text) == text


@pytest.mark.parametrize("text", ["", "S" * 127])
def test_not_a_serial_number(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1 to 126"):
        serial(text)


@pytest.mark.parametrize("text", ["192.0.2.0/24", "192.0.2.7", "::1", "2001:db8::/32"])
def test_a_network_travels_as_it_was_written(text: str) -> None:
    assert network(text) == text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["frob"], "frob"),
        (["bind", "--busid", "nonsense"], "not a busid"),
        (["bind", ""], "empty"),
        (["bind", "\udcff"], "no name has"),  # what Python makes of a byte that is not UTF-8
        (["bind", "a\x1b[2J"], "no name has"),
        (["bind", "0781:5581:\udcff"], "no serial number has"),
        (["history", "--device", "a\nb"], "no name has"),
        (["bind", "-i", "0781:5581", "--serial", "\udcff"], "no serial number has"),
        (["bind", "1-1."], "not a busid"),
        (["bind", "1-1-1"], "not a busid"),
        (["bind", "1-" + "1" * 30], "longer than"),
        (["bind", "781:5581"], "not a hardware id"),
        (["bind", "0x0781:0x5581"], "not a hardware id"),
        (["bind", "0781:5581:"], "1 to 126"),
        (["bind", "--hardware-id", "0781:5581:1"], "not a hardware id"),
        (["bind", "--hardware-id", "0781:5581", "--serial", ""], "1 to 126"),
        (["bind", "--busid", "1-1", "--allow", "localhost"], "localhost"),
        (["bind", "--busid", "1-1", "--allow", "192.0.2.1/24"], "192.0.2.0/24"),
        (["release", "--busid", "nonsense"], "not a busid"),
        (["history", "--limit", "0"], "whole number"),
        (["status", "--watch", "0"], "0.1 to 3600"),
        (["list", "--remote", "host:0"], "not a port"),
        (["list", "--rem", "host"], "--rem"),  # no abbreviations: a new option must not change an old command
    ],
)
def test_wrong_usage_of_usbipd(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        build_parser().parse_args(argv)
    assert caught.value.exit_code == 2


def test_wrong_usage_tells_where_the_right_one_stands() -> None:
    with pytest.raises(UsageError) as caught:
        build_parser().parse_args(["frob"])
    assert caught.value.advice == "`usbipd help` lists the commands"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["bind"], "bind needs a device"),
        (["unbind"], "unbind needs a device"),
        (["detach"], "detach needs a device"),
        (["release"], "release needs a device"),
        (["bind", "-b", "1-1", "-i", "0781:5581"], "--busid and --hardware-id cannot be combined"),
        (["bind", "3-1", "-b", "1-1"], "DEVICE and --busid cannot be combined"),
        (["unbind", "ultra", "-a"], "DEVICE and --all cannot be combined"),
        (["unbind", "-i", "0781:5581", "-a"], "--hardware-id and --all cannot be combined"),
        (["bind", "--busid", "1-1", "--serial", "S"], "--serial requires --hardware-id"),
        (["unbind", "--all", "--serial", "S"], "--serial requires --hardware-id"),
        (["bind", "--busid", "1-1", *["--allow", "::1"] * 65], "--allow is given 65 times: the limit is 64"),
    ],
)
def test_what_is_refused_before_the_extension_is_asked(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        usbipd.run(["--socket", "/nonexistent", *argv])


@pytest.mark.parametrize("name", [name for name in SUBCOMMANDS if name != "help"])
@pytest.mark.parametrize("before", [True, False])
def test_every_verb_takes_socket_and_json(name: str, before: bool) -> None:
    needed = {"bind": ["1-1"], "detach": ["1-1"], "release": ["1-1"], "unbind": ["--all"]}
    option = ["--socket", "/tmp/x"]
    argv = [name, *needed.get(name, []), "--json"]
    argv = [*option, *argv] if before else [*argv, *option]
    arguments = build_parser().parse_args(argv)
    assert str(arguments.socket) == "/tmp/x"
    assert arguments.json
    assert arguments.command is load(name)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("1-1", Selector("1-1", busid="1-1")),
        ("3-2.4", Selector("3-2.4", busid="3-2.4")),
        ("0781:55AB", Selector("0781:55AB", hardware=HardwareId(vendor_id=0x781, product_id=0x55AB))),
        (
            "0781:5581:4C53:1",
            Selector(
                "0781:5581:4C53:1",
                hardware=HardwareId(vendor_id=0x781, product_id=0x5581, serial="4C53:1"),
            ),
        ),
        ("ultra", Selector("ultra")),
        ("7-in-1 hub", Selector("7-in-1 hub")),
        ("hub: usb", Selector("hub: usb")),
    ],
)
def test_a_device_as_people_name_it(text: str, selector: Selector) -> None:
    assert parse_device(text) == selector


@pytest.mark.parametrize(
    "argv",
    [
        ["1-1", "3-2", "ultra", "--force"],
        ["--force", "1-1", "3-2", "ultra"],
        ["1-1", "--force", "3-2", "ultra"],
        ["--allow", "::1", "1-1", "3-2", "--force", "ultra"],
        ["-f", "--", "1-1", "3-2", "ultra"],
    ],
)
def test_devices_stand_before_and_behind_options(argv: list[str]) -> None:
    arguments = build_parser().parse_args(["bind", *argv])
    assert [each.text for each in arguments.devices] == ["1-1", "3-2", "ultra"]
    assert arguments.force


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["bind", "-b", "1-1", "-f"], ["bind", "--busid", "1-1", "--force"]),
        (["bind", "-i", "0781:5581"], ["bind", "--hardware-id", "0781:5581"]),
        (["unbind", "-a"], ["unbind", "--all"]),
        (["detach", "-b", "1-1"], ["detach", "--busid", "1-1"]),
        (["release", "-b", "1-1"], ["release", "--busid", "1-1"]),
        (["list", "-r", "host"], ["list", "--remote", "host"]),
    ],
)
def test_short_options(short: list[str], long: list[str]) -> None:
    assert build_parser().parse_args(short) == build_parser().parse_args(long)


def test_list_needs_the_extension_unless_it_asks_another_machine() -> None:
    command = build_parser().parse_args(["list"]).command
    assert command.requires_extension(build_parser().parse_args(["list"]))
    assert not command.requires_extension(build_parser().parse_args(["list", "--remote", "host"]))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "one of --run, --status, --health or --check-config is required"),
        (["--run", "--status"], "--run and --status cannot be combined"),
        (["--health", "--check-config"], "--health and --check-config cannot be combined"),
        (["--run", "--json"], "--json applies to --status or --health or --check-config, not to --run"),
        (["--run", "--watch"], "--watch applies to --status, not to --run"),
        (["--health", "--watch"], "--watch applies to --status, not to --health"),
        (["--status", "--listen", "::1"], "--listen applies to --run, not to --status"),
        (["--status", "--allow", "::1"], "--allow applies to --run"),
        (["--status", "--real-devices"], "--real-devices applies to --run"),
        (["--status", "--state", "/tmp"], "--state applies to --run"),
        (["--status", "--log-to", "syslog"], "--log-to applies to --run"),
        (["--status", "--simulate", ""], "--simulate applies to --run"),
        (["--health", "--config", "x"], "--config applies to --run or --check-config"),
        (["--check-config", "--log-level", "debug"], "--log-level applies to --run"),
        (["--check-config", "--socket", "x"], "--socket applies to --run or --status or --health"),
        (["--run", "--log-to", "mail"], "mail"),
        (["--run", "--allow", "localhost"], "localhost"),
        (["--run", *["--allow", "::1"] * 257], "the limit is 256"),
        (["--run", "--simulate", "toaster"], "toaster"),
        (["--run", "--simulate", ""], "--simulate"),
        (["--run", "--listen", "localhost"], "localhost"),
        (["--run", "--log-level", "loud"], "loud"),
        (["--run", "--config", "/nonexistent/usbipd.toml"], "/nonexistent/usbipd.toml"),
    ],
)
def test_wrong_usage_of_usbipd_ext(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ext.run(argv, load_daemon)


def test_the_help_names_every_simulated_device() -> None:
    text = ext.build_parser().format_help()
    assert [name for name in NAMES if name not in text] == []


def test_every_option_of_usbipd_ext_knows_where_it_belongs() -> None:
    options = {option for action in ext.build_parser()._actions for option in action.option_strings}
    actions = {"--run", "--status", "--health", "--check-config"}
    assert options - actions - {"-h", "--help", "-V", "--version"} == set(ext.ACTIONS_OF_OPTION)
    assert set().union(*ext.ACTIONS_OF_OPTION.values()) <= actions


FILE = """
listen = ["192.0.2.1"]
allow = ["192.0.2.0/24"]
log_level = "warning"
log_to = "syslog"
"""


def test_the_command_line_wins_over_the_configuration(tmp_path: Path) -> None:
    file = str(tmp_path / "usbipd.toml")
    Path(file).write_text(FILE)
    parse = ext.build_parser().parse_args
    config = ext.configuration(parse(["--run", "--config", file]))
    assert (config.listen, config.allow) == (("192.0.2.1",), ("192.0.2.0/24",))
    assert (config.log_level, config.log_to) == ("warning", "syslog")
    options = ["--listen", "::1", "--listen", "127.0.0.1:0", "--allow", "::1", "--allow", "10.0.0.0/8"]
    options += ["--log-level", "debug", "--log-to", "stderr"]
    config = ext.configuration(parse(["--run", "--config", file, *options]))
    assert (config.listen, config.allow) == (("[::1]:3240", "127.0.0.1:0"), ("::1", "10.0.0.0/8"))
    assert (config.log_level, config.log_to) == ("debug", "stderr")


@pytest.mark.parametrize(
    ("uid", "level"),
    [
        pytest.param(
            0,
            "warning",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="root takes only a file of root's"),
        ),
        (1000, "info"),
    ],
)
def test_only_root_reads_the_usual_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, level: str
) -> None:
    file = tmp_path / "usbipd.toml"
    monkeypatch.setattr("usbipd.paths.config_file", lambda: file)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    arguments = ext.build_parser().parse_args(["--run"])
    assert ext.configuration(arguments).log_level == "info"  # it is not there
    file.write_text(FILE)
    assert ext.configuration(arguments).log_level == level


@pytest.mark.parametrize(
    ("argv", "state"),
    [
        ([], "usual"),
        (["--simulate", "loopback"], None),
        (["--simulate", "loopback", "--real-devices"], "usual"),
        (["--simulate", "loopback", "--state", "mine"], "mine"),
        (["--state", "mine"], "mine"),
    ],
)
def test_where_the_daemon_keeps_what_outlives_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: list[str], state: str | None
) -> None:
    given: list[object] = []

    def run(*parameters: object) -> int:
        given.extend(parameters)
        return 0

    monkeypatch.setattr("usbipd.paths.config_file", lambda: tmp_path / "none")
    monkeypatch.setattr("usbipd.paths.state_directory", lambda: Path("usual"))
    assert ext.run(["--run", "--socket", "/tmp/x", *argv], lambda: run) == 0
    _config, _simulate, with_real, socket_path, state_directory = given
    assert state_directory == (None if state is None else Path(state))
    assert socket_path == Path("/tmp/x")
    assert with_real == ("--simulate" not in argv or "--real-devices" in argv)
