"""`usbipd-ext --check-config`: the verdict, and the settings as the file would say them."""

import json
import os
from pathlib import Path

import pytest

from usbipd.__main__ import load_daemon
from usbipd.cli import ext
from usbipd.config import ServerConfig, parse

FILE = """
listen = ["::1"]
allow = ["192.0.2.0/24", "2001:db8::/32"]
log_level = "debug"

[limits]
max_connections = 5

[[access]]
busid = "1-1"
allow = ["192.0.2.7"]

[[access]]
hardware_id = "0781:5581"
serial = "S \\" \\\\ 日"
allow = ["192.0.2.8"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "usbipd.toml"
    path.write_text(FILE)
    return path


def test_what_is_shown_says_the_same_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ext.main(["--check-config", "--config", str(file)], load_daemon) == 0
    verdict, empty, *shown = capsys.readouterr().out.splitlines()
    assert (verdict, empty) == (f"{file}: ok", "")
    again = parse("\n".join(shown), "shown")
    config = parse(FILE, "file")
    assert again.addresses == config.addresses
    assert (again.allow, again.access, again.limits) == (config.allow, config.access, config.limits)
    assert (again.log_level, again.log_to) == (config.log_level, config.log_to)
    assert 'listen = ["[::1]:3240"]' in shown


def test_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ext.main(["--check-config", "--config", str(file), "--json"], load_daemon) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["file"]) == (1, str(file))
    settings = document["settings"]
    assert settings.keys() == set(ServerConfig.__struct_fields__)
    assert settings["listen"] == ["[::1]:3240"]
    assert settings["limits"]["max_connections"] == 5
    assert settings["access"][0] == {
        "busid": "1-1",
        "hardware_id": None,
        "serial": None,
        "allow": ["192.0.2.7"],
    }


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_wrong_file_is_wrong_usage(
    file: Path, capsys: pytest.CaptureFixture[str], as_json: list[str]
) -> None:
    file.write_text("lisen = []")
    assert ext.main(["--check-config", "--config", str(file), *as_json], load_daemon) == 2
    captured = capsys.readouterr()
    assert "lisen" in captured.err
    assert str(file) in captured.err
    assert bool(captured.out) == bool(as_json)


def test_the_usual_file_is_the_one_meant(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usbipd.paths.config_file", lambda: file)
    assert ext.main(["--check-config"], load_daemon) == 0
    assert capsys.readouterr().out.startswith(f"{file}: ok\n")


def test_without_a_file_the_defaults_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = tmp_path / "none.toml"
    monkeypatch.setattr("usbipd.paths.config_file", lambda: none)
    assert ext.main(["--check-config"], load_daemon) == 0
    verdict, *shown = capsys.readouterr().out.splitlines()
    assert verdict == f"{none} does not exist: the defaults apply"
    assert parse("\n".join(shown), "shown") == ServerConfig(listen=("127.0.0.1:3240",))
    assert ext.main(["--check-config", "--json"], load_daemon) == 0
    assert json.loads(capsys.readouterr().out)["file"] is None


def test_a_named_file_has_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ext.main(["--check-config", "--config", str(tmp_path / "none")], load_daemon) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "uid",
    [
        pytest.param(
            0, marks=pytest.mark.skipif(os.geteuid() != 0, reason="root's checks take root's files")
        ),
        54321,
    ],
)
def test_who_has_checked_is_told_unless_it_is_root(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr("usbipd.paths.config_file", lambda: file)
    file.write_text("")
    assert ext.main(["--check-config", "--json"], load_daemon) == 0
    captured = capsys.readouterr()
    assert captured.err == ("" if uid == 0 else f"checked as {uid}, not as root\n")
    json.loads(captured.out)


@pytest.mark.parametrize("option", ["--config", "--log-to", "--log-level", "--socket", "--state"])
def test_an_empty_value_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--run", "--simulate", "loopback", "--socket", f"{tmp_path}/no/run/control.sock", option, ""]
    assert ext.main(arguments, load_daemon) == 2
    why = {"--log-to": "unknown log destination ''", "--log-level": "unknown log level ''"}
    assert why.get(option, f"{option}: the path is empty") in capsys.readouterr().err


def test_a_byte_order_mark_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_bytes(b"\xef\xbb\xbflisten = []\n")
    assert ext.main(["--check-config", "--config", str(file)], load_daemon) == 2
    assert f"{file}: starts with a byte order mark (BOM): save it" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_a_user_that_does_not_exist(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('listen = ["127.0.0.1"]\nuser = "nobody-of-that-name"\n')
    for action in ("--check-config", "--run"):
        assert ext.main([action, "--config", str(file)], load_daemon) == 2
        assert f"{file}, line 2: user: no user 'nobody-of-that-name' on this host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            'listen = ["127.0.0.1", "0.0.0.0"]',
            "listen: cannot listen on 127.0.0.1:3240: 0.0.0.0:3240 is",
        ),
        ('listen = ["192.0.2.1"]', "cannot listen on 192.0.2.1:3240: this host has no such address"),
        ('listen = ["::1:3240"]', "write an IPv6 address with a port in brackets: [::1]:3240"),
        ('listen = ["fe80::1"]', "line 1: listen[0]: 'fe80::1' is not an address to listen on: link-local"),
        ('listen = ["fe80::1%no-such-one"]', "this host has no such address"),
        ('user = "no-such-user"', "user: no user 'no-such-user' on this host"),
        ('user = "root"', "user 'root' has root's user or group id"),
        (
            'log_to = "/no/such/directory/log"',
            "cannot log to /no/such/directory/log: No such file",
        ),
        ('log_to = "/tmp"', "cannot log to /tmp: Is a directory"),
    ],
)
def test_what_run_refuses_is_refused(
    file: Path, tmp_path: Path, settings: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(settings)
    run = ["--run", "--simulate", "loopback", "--socket", str(tmp_path / "run" / "control.sock")]
    for action in (["--check-config"], run):
        assert ext.main([*action, "--config", str(file)], load_daemon) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
