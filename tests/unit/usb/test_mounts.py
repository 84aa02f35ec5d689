"""The tables of mounts and swap areas, and umount itself.

Real unmounts need root: they run in a private mount namespace, invisible to the host.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from usbipd.errors import ClaimError
from usbipd.usb import mounts
from usbipd.usb.mounts import (
    Mount,
    mount_table_of_host,
    order_of_unmounting,
    read_mounts,
    read_swaps,
    umount,
)

MOUNT_TABLE = (
    b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n"
    b"37 36 0:39 / /tmp/a\\040-\\040b\\134\\012\\043\xff rw - tmpfs - rw\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "table"


def test_the_mount_table(table: Path) -> None:
    table.write_bytes(MOUNT_TABLE)
    assert read_mounts(table) == [
        Mount(36, 35, "98:0", b"/mnt2", b"/dev/root"),
        Mount(37, 36, "0:39", b"/tmp/a - b\\\n#\xff", b"-"),
    ]


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="needs a /proc")
def test_the_mount_table_of_this_host() -> None:
    assert any(mount.point == b"/" for mount in read_mounts(Path("/proc/self/mountinfo")))


def test_swap_areas(table: Path) -> None:
    table.write_bytes(
        b"Filename Type Size Used Priority\n/dev/sda2  partition 1 0 -2\n/a\\040b file 1 0 -3\n"
    )
    assert read_swaps(table) == [b"/dev/sda2", b"/a b"]


def test_a_kernel_without_swap(table: Path) -> None:
    assert read_swaps(table) == []


def test_nested_and_later_mounts_come_first() -> None:
    parents = {
        31: 1,  # /a
        32: 35,  # /b/c, moved there
        33: 31,  # /a/d
        34: 31,  # /a again: over both
        35: 1,  # /b
        1: 1,  # /
    }
    mounted = [Mount(number, parent, "8:0", b"", b"") for number, parent in parents.items()]
    assert [mount.mount_id for mount in order_of_unmounting(mounted)] == [34, 33, 32, 35, 31, 1]


def program(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An umount that is `script`."""
    file = directory / "umount"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(mounts, "_PROGRAMS", f"{directory}:/bin:/usr/bin")


def test_the_table_is_that_of_the_host(tmp_path: Path) -> None:
    """Our mount namespace may differ from the host's."""
    assert mount_table_of_host(tmp_path) == tmp_path / "self/mountinfo"
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mountinfo").touch()
    assert mount_table_of_host(tmp_path) == tmp_path / "1/mountinfo"


def test_umount_gets_the_path_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    program(tmp_path, f'cd {tmp_path}; printf "%s|" "$@" >arguments; env >environment', monkeypatch)
    assert umount(b"/a b;\n$(x)\xff") is None
    assert (tmp_path / "arguments").read_bytes() == b"/a b;\n$(x)\xff|"
    assert "LC_ALL=C.UTF-8" in (tmp_path / "environment").read_text()
    assert "LD_PRELOAD" not in (tmp_path / "environment").read_text()


def test_umount_is_protected_from_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = f"import os; open('{tmp_path}/session', 'w').write(str(os.getsid(0)))"
    program(tmp_path, f'exec {sys.executable} -c "{ask}"', monkeypatch)
    assert umount(b"/a") is None
    assert int((tmp_path / "session").read_text()) != os.getsid(0)


def test_the_error_message_of_umount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "echo 'umount: /a: target' >&2; printf 'is\\033 busy.\\n' >&2; exit 32", monkeypatch)
    assert umount(b"/a") == "umount: /a: target is\\x1b busy."
    program(tmp_path, "exit 32", monkeypatch)
    assert umount(b"/a") == "exit code 32"


def test_a_host_without_umount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_PROGRAMS", str(tmp_path))
    with pytest.raises(ClaimError, match="umount was not found") as caught:
        umount(b"/a")
    assert caught.value.code == "no-umount"


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_an_umount_that_takes_too_long_keeps_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "go")
    os.mkfifo(tmp_path / "done")
    program(tmp_path, f"read line <{tmp_path}/go; echo written >{tmp_path}/done", monkeypatch)
    monkeypatch.setattr(mounts, "UMOUNT_TIMEOUT", 0.01)
    with pytest.raises(ClaimError, match="/a is still being unmounted") as caught:
        umount(b"/a")
    assert caught.value.code == "mounted"
    (tmp_path / "go").write_text("now\n")
    assert (tmp_path / "done").read_text() == "written\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_real_file_systems(tmp_path: Path) -> None:
    """See `unmount_for_real`, which is process 1 of a separate host, as far as mounts go."""
    apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"]
    can = subprocess.run([*apart, "mount", "-t", "tmpfs", "x", tmp_path], check=False)
    if can.returncode != 0:
        pytest.skip("may not mount here")
    subprocess.run(
        [*apart, sys.executable, __file__, tmp_path],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def unmount_for_real(directory: Path) -> None:
    """A disk that is a tmpfs: mounted under strange names, nested, over itself, and busy for a while."""
    from tests.unit.usb.fake_sysfs import FakeSysfs
    from usbipd.usb.ownership import SysfsOwnership

    top = directory / os.fsdecode(b"my \n\\ stick\xff")
    top.mkdir()
    _mount("-t", "tmpfs", "stick", top)
    for inner in (top / "inner", directory / "elsewhere"):
        inner.mkdir()
        _mount("--bind", top, inner)
    _mount("--bind", top, top)
    (directory / "host").mkdir()
    sysfs = FakeSysfs(directory / "host")
    sysfs.add_interface("1-2", 0, "usb-storage")
    number = os.stat(top).st_dev  # noqa: PTH116
    sysfs.add_block_device(
        sysfs.root / "devices/1-2/1-2:1.0/block", "sda", f"{os.major(number)}:{os.minor(number)}"
    )
    ownership = SysfsOwnership(sysfs.root, dev=sysfs.dev)
    assert len(ownership.in_use("1-2")) == 3, ownership.in_use("1-2")

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=directory / "elsewhere") as reader:
        with pytest.raises(ClaimError, match="/elsewhere cannot be unmounted, because cat ") as caught:
            ownership.unmount("1-2")
        assert caught.value.code == "mounted"
        assert f"cat (pid {reader.pid}) has files open there" in caught.value.message
    ownership.unmount("1-2")
    assert ownership.in_use("1-2") == []
    assert all(b"stick" not in mount.point for mount in read_mounts(Path("/proc/self/mountinfo")))


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    unmount_for_real(Path(sys.argv[1]))
