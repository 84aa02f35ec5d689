"""The range of user ids for workers: valid ranges, and conflicts on this host."""

import grp
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from usbipd import worker_uids
from usbipd.config import ServerConfig
from usbipd.errors import UsageError
from usbipd.host_needs import check_host
from usbipd.worker_uids import DEFAULT_UIDS, check_unused, parse_uids


@pytest.mark.parametrize(
    ("text", "uids"),
    [
        (DEFAULT_UIDS, range(65537, 100000)),
        ("1-61183", range(1, 61184)),
        ("65520-65533", range(65520, 65534)),
        ("65536-65536", range(65536, 65537)),
        ("100000-524287", range(100000, 524288)),
        ("1879048192-4294967294", range(1879048192, 4294967295)),
    ],
)
def test_ranges(text: str, uids: range) -> None:
    assert parse_uids(text) == uids


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write two numbers, FIRST-LAST"),
        ("65537", "write two numbers, FIRST-LAST"),
        ("65537-", "write two numbers, FIRST-LAST"),
        (" 65537-65540", "write two numbers, FIRST-LAST"),
        ("65537-65540\n", "write two numbers, FIRST-LAST"),
        ("-5-7", "write two numbers, FIRST-LAST"),
        ("0x10001-0x10002", "write two numbers, FIRST-LAST"),
        ("٦٥٥٣٧-٦٥٥٤٠", "write two numbers, FIRST-LAST"),
        ("9" * 30 + "-" + "9" * 30, "write two numbers, FIRST-LAST"),
        ("65540-65539", "the first is greater than the last"),
        ("1879048192-4294967295", "the greatest possible id is 4294967294"),
        ("0-5", "0 is reserved for root"),
        ("60000-61184", "61184 is reserved for services of systemd"),
        ("65519-65530", "65519 is reserved for services of systemd"),
        ("61000-66000", "61184 to 65519 are reserved for services of systemd"),
        ("65530-65534", "65534 is reserved for the user nobody"),
        ("65535-65540", "65535 is reserved for the user nobody"),
        ("65537-524288", "524288 is reserved for containers of systemd-nspawn"),
    ],
)
def test_ranges_that_no_host_may_use(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uids(text)
    assert caught.value.message.startswith(f"{text!r} cannot be the user ids of workers: {complaint}")
    assert DEFAULT_UIDS in caught.value.message, "what would be right"


class Databases:
    """The user databases of a host."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.users = [("root", 0, 0), ("alice", 1000, 1000), ("nobody", 65534, 65534)]
        self.groups = [("root", 0), ("alice", 1000)]
        self.subuid, self.subgid = directory / "subuid", directory / "subgid"
        self.uid_map, self.gid_map = directory / "uid_map", directory / "gid_map"
        monkeypatch.setattr(worker_uids, "_SUBORDINATE", (self.subuid, self.subgid))
        monkeypatch.setattr(worker_uids, "_MAPS", (self.uid_map, self.gid_map))
        monkeypatch.setattr(pwd, "getpwall", self._users)
        monkeypatch.setattr(grp, "getgrall", self._groups)

    def _users(self) -> list[pwd.struct_passwd]:
        return [pwd.struct_passwd((name, "x", uid, gid, "", "/", "")) for name, uid, gid in self.users]

    def _groups(self) -> list[grp.struct_group]:
        return [grp.struct_group((name, "x", gid, [])) for name, gid in self.groups]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Databases:
    return Databases(tmp_path, monkeypatch)


def complaint() -> str:
    with pytest.raises(UsageError) as caught:
        check_unused("70000-70009")
    return caught.value.message


def test_a_host_without_any_of_them(host: Databases) -> None:
    host.users += [("before", 69999, 1), ("behind", 70010, 1)]
    host.subuid.write_text("alice:100000:65536\nbob:69000:1000\n\n# not a valid line\nx:y:z\nalice:70000:0\n")
    check_unused("70000-70009")


def test_a_user_has_one(host: Databases) -> None:
    host.users.append(("bob", 70009, 100))
    assert "70009 is the user bob" in complaint()


def test_a_group_has_one(host: Databases) -> None:
    host.groups.append(("staff", 70000))
    assert "70000 is the group staff" in complaint()


def test_containers_have_some(host: Databases) -> None:
    host.subuid.write_text("alice:65536:4469\n")
    assert f"70000 to 70004 are for containers of alice ({host.subuid})" in complaint()


def test_group_ids_of_containers(host: Databases) -> None:
    host.subgid.write_text("alice:70005:65536\n")
    assert f"70005 to 70009 are for containers of alice ({host.subgid})" in complaint()


EVERY_ID = "         0          0 4294967295\n"  # as Linux prints it
OF_A_CONTAINER = "         0     100000      65536\n"


def test_the_first_user_namespace_has_all_ids(host: Databases) -> None:
    host.uid_map.write_text(EVERY_ID)
    host.gid_map.write_text(EVERY_ID)
    check_unused("1879048192-4294967294")


@pytest.mark.parametrize("which", ["uid_map", "gid_map"])
def test_ids_that_a_user_namespace_does_not_have(host: Databases, which: str) -> None:
    for name in ("uid_map", "gid_map"):
        getattr(host, name).write_text(OF_A_CONTAINER if name == which else EVERY_ID)
    file = getattr(host, which)
    said = complaint()
    assert f"70000 to 70009 are not mapped in this user namespace ({file}); choose a range" in said
    assert said.endswith("such as 60706-61183")
    check_unused("60706-61183")


@pytest.mark.parametrize(
    ("maps", "missing"),
    [
        ("0 0 1\n70000 70000 9\n", "70009 is not mapped"),
        ("0 0 1\n70001 5 9\n", "70000 is not mapped"),
        ("70006 9 90\n0 0 70003\n", "70003 to 70005 are not mapped"),
        ("", "70000 to 70009 are not mapped"),
    ],
)
def test_ids_that_are_mapped_in_part(host: Databases, maps: str, missing: str) -> None:
    host.uid_map.write_text(maps)
    assert missing in complaint()


def test_ids_that_are_mapped_piece_by_piece(host: Databases) -> None:
    host.uid_map.write_text("70005 7 5\n0 0 1\n70000 900000 5\n")
    check_unused("70000-70009")


def test_the_suggested_range_is_free(host: Databases) -> None:
    host.users += [("bob", 70000, 100), ("eve", 61000, 100)]
    host.groups.append(("staff", 59500))
    host.subuid.write_text("alice:58000:10\n")
    assert complaint().endswith("such as 57000-57999")


def test_a_namespace_with_too_few_ids(host: Databases) -> None:
    host.uid_map.write_text("0 1000 1\n")
    assert complaint().endswith("; map more user and group ids into this namespace")


IN_A_USER_NAMESPACE = """
import ctypes, sys
if ctypes.CDLL(None).unshare(0x10000000) == 0:  # CLONE_NEWUSER
    print("new", flush=True)
sys.stdin.readline()
from usbipd.errors import UsageError
from usbipd.worker_uids import check_unused
check_unused("60706-61183")
try:
    check_unused("65537-99999")
except UsageError as error:
    print(error.message)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root maps 65,536 ids")
def test_a_real_user_namespace() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", IN_A_USER_NAMESPACE]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != "new\n":
            pytest.skip("no user namespace can be made here")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{name}").write_text("0 0 65536\n")
        said, problems = child.communicate("go on\n")
    assert not problems
    assert "65537 to 99999 are not mapped in this user namespace (/proc/self/uid_map)" in said
    assert said.endswith("such as 60706-61183\n")


@pytest.mark.parametrize("is_root", [True, False])
def test_the_configuration_is_checked_if_it_matters(
    host: Databases, monkeypatch: pytest.MonkeyPatch, is_root: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    host.users.append(("bob", 65537, 100))
    if is_root:
        with pytest.raises(UsageError, match=r"^worker_uids: .* 65537 is the user bob; choose a range"):
            check_host(ServerConfig())
    else:
        check_host(ServerConfig())
