"""The manual pages: well-formed, reproducible, and in agreement with the code."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec.inspect
import pytest

from usbipd import __version__, control_socket, paths
from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.config import AccessRule, Limits, ServerConfig, parse
from usbipd.log import DESTINATIONS

MANUALS = Path(__file__).parents[3] / "packaging" / "manuals.py"
NAMES = ["usbipd-ext.8", "usbipd.1", "usbipd.toml.5"]


def make(directory: Path, **variables: str) -> dict[str, str]:
    """The pages by name, built as by `make man`."""
    subprocess.run(
        [sys.executable, str(MANUALS), str(directory)],
        check=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("man")


@pytest.fixture(scope="module")
def pages(directory: Path) -> dict[str, str]:
    return make(directory)


def section(page: str, title: str) -> str:
    """The source of a section."""
    return page.partition(f"\n.SH {title}\n")[2].partition("\n.SH")[0]


def plain(source: str) -> str:
    """The text without fonts and escapes."""
    return (
        re.sub(r"\\f[BIRP]|\\,|\\/", "", source).replace(r"\-", "-").replace(r"\(dq", '"').replace(r"\ ", " ")
    )


def test_there_are_three_of_this_version(pages: dict[str, str]) -> None:
    assert list(pages) == NAMES
    for page in pages.values():
        assert f'"usbipd {__version__}"' in next(line for line in page.splitlines() if line.startswith(".TH"))
        assert "@" not in page


def test_they_are_reproducible(pages: dict[str, str], tmp_path: Path) -> None:
    elsewhere = {"SOURCE_DATE_EPOCH": "0", "COLUMNS": "40", "TZ": "Asia/Tokyo", "FORCE_COLOR": "1"}
    assert make(tmp_path, **elsewhere) == pages


@pytest.mark.parametrize("name", NAMES)
def test_mandoc_reports_nothing(name: str, pages: dict[str, str], directory: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed (make test-deps)")
    done = subprocess.run(
        ["mandoc", "-Tlint", name], cwd=directory, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    options = {option for action in parser._actions for option in action.option_strings}
    return options - {"-h", "--help"}


def shown_options(source: str) -> set[str]:
    """The options with an entry in `source`."""
    entries = re.findall(r"^\.TP\n(-.*)", plain(source), re.M)
    return {option for entry in entries for option in re.findall(r"(?:^|, )(--?[a-zA-Z-]+)", entry)}


def test_every_command_and_option_is_described(pages: dict[str, str]) -> None:
    page = pages["usbipd.1"]
    commands = {
        each.split("\n", 1)[0].split()[-1]: each.split("\n", 1)[1]
        for each in plain(page.partition("\nCOMMANDS\n")[2].partition("\n.SH ")[0]).split(".SS ")[1:]
    }
    assert list(commands) == list(usbipd.SUBCOMMANDS)
    for name in usbipd.SUBCOMMANDS:
        parser = argparse.ArgumentParser()
        usbipd.load(name).add_arguments(parser)
        assert shown_options(commands[name]) == options_of(parser) | {"--socket"}
        assert f".SY usbipd {name}\n" in plain(page)
    assert shown_options(section(page, "OPTIONS")) == {"-V", "--version", "--socket"}


def test_every_option_of_the_daemon_is_described(pages: dict[str, str]) -> None:
    options = section(pages["usbipd-ext.8"], "OPTIONS")
    assert shown_options(options) == options_of(ext.build_parser())
    assert re.findall(r"^\.SS (.*)", plain(options), re.M) == ["With --status", "With --run"]


@pytest.mark.parametrize(
    ("title", "table"),
    [("KEYS OF THE FILE", ServerConfig), ("TABLE [limits]", Limits), ("TABLES [[access]]", AccessRule)],
)
def test_the_page_of_the_configuration_is_correct(
    title: str, table: type[msgspec.Struct], pages: dict[str, str]
) -> None:
    """Every key is described, in the order of the code, with its default and bounds."""
    source = section(pages["usbipd.toml.5"], title) + "\n"
    entries = dict(re.findall(r"^\.TP\n\.B (\w+)\n(.*?)(?=^\.TP|\Z)", source, re.M | re.S))
    fields = {
        field.name: field
        for field in msgspec.inspect.type_info(table).fields
        if field.name not in ("limits", "access")
    }
    assert list(entries) == list(fields)
    for key, entry in entries.items():
        default = fields[key].default
        if default is None:
            assert "\nDefault: " in entry
        elif key == "allow" and table is AccessRule:
            assert "\nDefault: none, the key has to be there." in entry
        else:
            assert f"\nDefault:\n.BR {msgspec.json.encode(default).decode()} .\n" in plain(entry)
        for bound in bounds(fields[key].type):
            assert re.search(rf"(?<![0-9]){bound}(?![0-9])", entry), f"{key}: {bound}"


def bounds(kind: msgspec.inspect.Type) -> list[int]:
    """The numbers that limit a value, or its length."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return [bound for each in kind.types for bound in bounds(each)]
    names = ("gt", "ge", "lt", "le", "max_length")
    found = [getattr(kind, name, None) for name in names]
    return [int(bound) for bound in found if bound is not None]


def test_the_values_of_a_key_are_listed(pages: dict[str, str]) -> None:
    text = plain(section(pages["usbipd.toml.5"], "KEYS OF THE FILE"))
    for field in msgspec.inspect.type_info(ServerConfig).fields:
        if isinstance(field.type, msgspec.inspect.LiteralType):
            assert all(f'"{word}"' in text for word in field.type.values)
    assert all(f'"{word}"' in text for word in DESTINATIONS)


def test_the_example_of_the_configuration_is_valid(pages: dict[str, str]) -> None:
    [example] = re.findall(r"^\.EX\n(.*?)^\.EE", pages["usbipd.toml.5"], re.M | re.S)
    config = parse(plain(example), "the example")
    assert len(config.access) == 2


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_pages_list_the_real_paths(
    platform: str, pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    socket = control_socket.own_control_socket()
    for name, path in (
        ("usbipd.1", socket),
        ("usbipd-ext.8", control_socket.runtime_directory()),
        ("usbipd-ext.8", paths.state_directory()),
        ("usbipd-ext.8", paths.config_file()),
        ("usbipd.toml.5", paths.config_file()),
    ):
        assert re.search(rf'^\.IR? "?{path}[" \n]', section(pages[name], "FILES") + "\n", re.M), path


def test_a_directory_is_required() -> None:
    done = subprocess.run(
        [sys.executable, str(MANUALS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (2, "usage: manuals.py DIRECTORY\n")
