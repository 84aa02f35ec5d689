"""Users: finding the unprivileged one, becoming it for good, and the peer of a socket."""

import json
import os
import pwd
import socket
import subprocess
import sys

import pytest

from usbipd import privileges
from usbipd.config import ServerConfig
from usbipd.errors import UsageError
from usbipd.host_needs import check_host
from usbipd.privileges import RunAs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root has privileges to drop")


def user_nobody() -> RunAs:
    user = pwd.getpwnam("nobody")
    return RunAs(user="nobody", uid=user.pw_uid, gid=user.pw_gid)


def run_dropped(program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` in a separate process in which `drop` and `user_nobody` are defined."""
    user = user_nobody()
    prelude = (
        "import json, os\n"
        "from usbipd import privileges\n"
        "from usbipd.privileges import RunAs\n"
        f"user_nobody = RunAs(user='nobody', uid={user.uid}, gid={user.gid})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + program], capture_output=True, text=True, check=False
    )


@as_root
def test_a_dropped_process_has_nothing_left() -> None:
    done = run_dropped(
        "os.setgroups([0, 4, 27])\n"
        "name = privileges.drop(user_nobody)\n"
        "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines())\n"
        "print(json.dumps([name, status['Uid'], status['Gid'], status['Groups'], status['CapEff'],"
        " status['CapPrm']]))"
    )
    assert done.returncode == 0, done.stderr
    name, uids, gids, groups, effective, permitted = json.loads(done.stdout)
    user = user_nobody()
    assert name == "nobody"
    assert set(uids.split()) == {str(user.uid)}
    assert set(gids.split()) == {str(user.gid)}
    assert groups.strip() == ""
    assert (int(effective, 16), int(permitted, 16)) == (0, 0)


@as_root
@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        ("os.setuid = lambda uid: None", "still has uids (0, 0, 0)"),
        ("os.setgid = lambda gid: None", "gids (0, 0, 0)"),
        ("real = os.setgroups; os.setgroups = lambda groups: real([27])", "groups {27}"),
        ("os.setuid = lambda uid: os.setresuid(uid, uid, 0)", "still has uids"),
        ("os.seteuid = lambda uid: None", "seteuid(0) still succeeds"),
    ],
    ids=["user kept", "group kept", "supplementary group kept", "saved user kept", "a way back"],
)  # fmt: skip
def test_a_failed_drop_ends_the_process(sabotage: str, complaint: str) -> None:
    done = run_dropped(f"{sabotage}\nprivileges.drop(user_nobody)\nprint('alive')")
    assert done.returncode == 1
    assert done.stdout == ""
    assert complaint in done.stderr


@as_root
def test_groups_of_the_directory_do_not_count() -> None:
    """macOS's os.getgroups() returns them, whatever setgroups did."""
    done = run_dropped("os.getgroups = lambda: [12, 61, 100]\nprivileges.drop(user_nobody)\nprint('alive')")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@as_user
def test_a_process_that_cannot_drop_exits() -> None:
    with pytest.raises(SystemExit):
        privileges.drop(user_nobody())


def test_nothing_to_drop() -> None:
    assert privileges.drop(None) == privileges.user_name(os.geteuid())


@as_root
def test_the_configured_user() -> None:
    assert privileges.find_run_as("nobody") == user_nobody()


@as_root
def test_the_default_user(caplog: pytest.LogCaptureFixture) -> None:
    found = privileges.find_run_as(None)
    assert found is not None
    if found.user == privileges.DEFAULT_USER:
        assert not caplog.records
    else:
        assert found == user_nobody()
        assert f"no user '{privileges.DEFAULT_USER}' on this host" in caplog.text


@as_root
def test_a_host_without_any_such_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", {}.__getitem__)
    for look in (lambda: privileges.find_run_as(None), lambda: check_host(ServerConfig())):
        with pytest.raises(
            UsageError, match=f"no user '{privileges.DEFAULT_USER}' .*, nor 'nobody'"
        ) as caught:
            look()
        assert caught.value.code == "bad-user"
        assert 'user = "NAME"' in (caught.value.advice or "")


@as_root
@pytest.mark.parametrize(
    ("user", "complaint"),
    [
        ("no-such-user", "no user 'no-such-user' on this host"),
        ("nobody\0", r"no user 'nobody\\x00' on this host"),
        ("root", "root's user or group"),
    ],
)
def test_bad_users(user: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        privileges.find_run_as(user)


@as_user
def test_an_ordinary_user_has_no_rights_to_drop() -> None:
    assert privileges.find_run_as(None) is None


def test_the_kernel_names_the_peer() -> None:
    one, other = socket.socketpair()
    with one, other:
        peer = privileges.peer_of(one)
    assert (peer.uid, peer.pid) == (os.geteuid(), os.getpid())
    assert peer.groups == {os.getegid(), *os.getgroups()}
    assert peer.name == pwd.getpwuid(os.geteuid()).pw_name


def test_a_user_without_a_name_is_a_number() -> None:
    assert privileges.user_name(3_999_999_999) == "3999999999"


@as_root
def test_a_peer_in_very_many_groups_has_its_primary_group() -> None:
    """The kernel returns all or none, and Python has room for 256."""
    done = run_dropped(
        "import socket\n"
        "os.setgroups(range(1000, 1300))\n"
        "one, other = socket.socketpair()\n"
        "print(json.dumps(list(privileges.peer_of(one).groups)))"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [os.getegid()]
