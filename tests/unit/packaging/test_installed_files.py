"""The files that are installed unchanged: launchd job, log rotation, default configuration.

The format is from launchd.plist(5) and newsyslog.conf(5); only a Mac has the programs that read them.
"""

import os
import plistlib
import re
import shutil
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest

from usbipd import config, control_socket, paths
from usbipd.cli import ext
from usbipd.extension.claimer import EXIT_TIMEOUT, KILL_TIMEOUT
from usbipd.extension.driver_reattach import DRIVERS_TIME
from usbipd.extension.usb_stack import MACOS

PACKAGING = Path(__file__).parents[3] / "packaging"
PLIST = PACKAGING / "macos" / "org.usbipd.extension.plist"
LOG = "/var/log/usbipd.log"


@pytest.fixture
def job() -> dict[str, object]:
    value = plistlib.loads(PLIST.read_bytes())
    assert isinstance(value, dict)
    return value


def test_keys_of_the_job(job: dict[str, object]) -> None:
    assert job == {
        "Label": "org.usbipd.extension",
        "ProgramArguments": ["/Library/usbipd/usbipd-ext", "--run", "--log-to", LOG],
        "StandardErrorPath": LOG,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ProcessType": "Interactive",
        "ExitTimeOut": 30,
    }


def test_the_job_matches_the_label_in_the_program(
    job: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert paths.launch_daemon() == Path("/Library/LaunchDaemons") / PLIST.name
    assert PLIST.stem == job["Label"]


def test_launchd_waits_longer_than_a_release_takes(job: dict[str, object]) -> None:
    timeout = job["ExitTimeOut"]
    assert isinstance(timeout, int)
    assert timeout > MACOS.stop_time + EXIT_TIMEOUT + KILL_TIMEOUT + DRIVERS_TIME


def test_the_program_accepts_these_arguments(job: dict[str, object], stage_tree: Path) -> None:
    arguments = job["ProgramArguments"]
    assert isinstance(arguments, list)
    program, *options = arguments
    assert os.access(f"{stage_tree}/root{program}", os.X_OK)
    assert ext.configuration(ext.build_parser().parse_args(options)).log_to == LOG


@pytest.mark.skipif(shutil.which("plutil") is None, reason="plutil is a program of macOS")
def test_plutil_accepts_the_job() -> None:
    subprocess.run(["plutil", "-lint", PLIST], check=True)


def test_newsyslog_rotates_the_log_and_signals_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (PACKAGING / "macos" / "newsyslog.conf").read_text().splitlines()
    [entry] = [line.split() for line in lines if not line.startswith("#")]
    log, owner, mode, count, size, when, flags, pid_file, signal_number = entry
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    socket = Path(control_socket.own_control_socket())
    assert (log, owner, int(mode, 8)) == (LOG, "root:admin", stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP)
    assert (int(count) > 0, int(size) > 0, when, flags) == (True, True, "*", "J")
    assert (pid_file, signal_number) == (str(paths.RuntimeFiles(socket).pid_file), "1")


DEFAULT = (PACKAGING / "usbipd.toml").read_text()


def test_the_default_configuration_changes_nothing() -> None:
    assert config.parse(DEFAULT, "usbipd.toml") == config.ServerConfig()


def uncommented(text: str) -> str:
    """`text` with every example active: keys and tables are uncommented."""
    return re.sub(r"(?m)^# (\[\[?[a-z]+\]?\]|[a-z_]+ = )", r"\1", text)


def test_the_examples_of_the_default_configuration_are_valid() -> None:
    text = uncommented(DEFAULT).replace('user = "usbipd"\n', "")
    parsed = config.parse(text, "usbipd.toml")
    assert parsed.limits == config.Limits(), "the file shows the defaults"
    assert (parsed.listen, parsed.log_level, parsed.log_to) == (("127.0.0.1",), "info", "stderr")
    assert len(parsed.access) == 2


def test_every_key_is_in_the_default_configuration() -> None:
    written = set(re.findall(r"(?m)^([a-z_]+) = ", uncommented(DEFAULT)))
    keys = {
        field.name
        for struct in (config.ServerConfig, config.Limits, config.AccessRule)
        for field in msgspec.structs.fields(struct)
    }
    assert written == keys - {"limits", "access"}
