"""The systemd unit and the user of the daemon, checked by systemd's own tools if installed."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from usbipd import control_socket, paths
from usbipd.cli import ext
from usbipd.extension import usb_stack
from usbipd.extension.claimer import CLAIM_TIMEOUT
from usbipd.extension.server_supervisor import SERVE_TIMEOUT
from usbipd.privileges import DEFAULT_USER

LINUX = Path(__file__).parents[3] / "packaging" / "linux"
UNIT = (LINUX / "usbipd.service").read_text()
EXPOSURE = 51
"""Tenths of the exposure of `systemd-analyze security`, systemd 252; 100 is the worst."""

MAKE_A_NAMESPACE = (
    *("ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset", "ProtectControlGroups"),
    *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs"),
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "PrivateIPC", "MountFlags"),
    *("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths"),
    *("BindPaths", "BindReadOnlyPaths", "TemporaryFileSystem", "MountImages", "ExtensionImages"),
    *("RootDirectory", "RootImage", "DynamicUser", "LogNamespace", "NetworkNamespacePath"),
)
"""systemd.exec(5), and exec_needs_mount_namespace of systemd's src/core/execute.c."""


def settings(name: str) -> list[str]:
    """The values of a setting, in order."""
    return re.findall(rf"(?m)^{name}=(.*)$", UNIT)


def value(name: str) -> str:
    [found] = settings(name)
    return str(found)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is missing: systemd is not installed"
    )


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_daemon_sees_and_changes_the_mounts_of_the_host() -> None:
    """Else a disk could be claimed below a file system that the host has mounted."""
    assert not [name for name in MAKE_A_NAMESPACE if settings(name)]


def test_the_program_accepts_these_arguments() -> None:
    program, *options = value("ExecStart").split()
    assert program == "@PREFIX@/sbin/usbipd-ext"
    assert ext.build_parser().parse_args(options).run


def test_systemd_waits_longer_than_claims_and_releases_take() -> None:
    assert int(value("TimeoutStartSec")) > SERVE_TIMEOUT + CLAIM_TIMEOUT
    assert int(value("TimeoutStopSec")) > 2 * (usb_stack.LINUX.release_time + usb_stack.LINUX.stop_time)


def test_directories_match_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("sys.platform", "linux")
    assert f"/run/{value('RuntimeDirectory')}" == control_socket.runtime_directory()
    assert Path("/var/lib", value("StateDirectory")) == paths.state_directory()


def analyze(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """systemd-analyze of the installed unit."""
    unit = tmp_path / "usbipd.service"
    unit.write_text(UNIT.replace("@PREFIX@/sbin/usbipd-ext", "/bin/true"))
    return run("systemd-analyze", "--man=no", *arguments, unit)


@needs("systemd-analyze")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify")
    assert (done.returncode, done.stderr) == (0, "")


@needs("systemd-analyze")
def test_exposure_does_not_grow(tmp_path: Path) -> None:
    done = analyze(tmp_path, "security", "--offline=true", f"--threshold={EXPOSURE}")
    assert done.returncode == 0, done.stdout


def sysusers(root: Path) -> Sequence[str]:
    """The lines about our user in passwd and group, after systemd-sysusers."""
    (root / "etc").mkdir(exist_ok=True)
    done = run("systemd-sysusers", f"--root={root}", LINUX / "sysusers.conf")
    assert done.returncode == 0, done.stderr
    lines = [line for name in ("passwd", "group") for line in (root / "etc" / name).read_text().splitlines()]
    return [line for line in lines if line.startswith(f"{DEFAULT_USER}:")]


@needs("systemd-sysusers")
def test_the_user_is_created_once_and_cannot_log_in(tmp_path: Path) -> None:
    user, group = lines = sysusers(tmp_path)
    _name, _password, uid, gid, _comment, home, shell = user.split(":")
    assert group.split(":")[2] == gid
    assert 0 < int(uid) < 1000, "a system user"
    assert (home, Path(shell).name) == ("/", "nologin")
    assert sysusers(tmp_path) == lines
