"""Confinement: hostile code in a process attempts what must fail (tests/hostile.py)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.hostile import Plan, Result
from usbipd import confinement
from usbipd.ipc.children import Confinement
from usbipd.privileges import RunAs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root gives each process a user and a root directory"
)

UID, SIBLING = 65537, 65538

NO_FILTER = "confinement.seccomp.deny = lambda **_: False\n"
NO_LANDLOCK = "confinement.landlock.restrict = lambda: 0\n"
NO_NETWORK_NAMESPACE = "confinement.leave_network = lambda: None\n"
NO_USER = "confinement.privileges.drop = lambda run_as: 'root'\n"
NO_ROOT_DIRECTORY = "confinement._enter = lambda directory: None\n"
NO_LIMITS = "confinement._limit = lambda open_files: None\n"


@pytest.fixture(scope="module")
def victims() -> Iterator[dict[str, int]]:
    """Processes of the extension's user, of another worker and (which must not happen) of the same user."""
    users = (
        {"root": 0, "a sibling": SIBLING, "its own user": UID}
        if os.geteuid() == 0
        else {"its own user": None}
    )
    running = {who: subprocess.Popen(["sleep", "600"], user=uid) for who, uid in users.items()}
    yield {who: process.pid for who, process in running.items()}
    for who, process in running.items():
        assert process.poll() is None, who
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state == "S", f"{who} is stopped or traced: {state}"
        process.kill()
        process.wait()


@pytest.fixture
def order(tmp_path: Path) -> Confinement:
    """The extension's order to a worker."""
    if os.geteuid() != 0:
        return Confinement(run_as=None, root=None)
    return Confinement(run_as=RunAs(user=str(UID), uid=UID, gid=UID), root=str(tmp_path))


def run(plan: Plan) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "tests.hostile", msgspec.json.encode(plan).decode()]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


def result_of(plan: Plan, code: int = 0) -> Result:
    done = run(plan)
    assert done.returncode == code, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Result)


def wanted(succeeded: list[str]) -> set[str]:
    """What must fail: a daemon without a separate user has no rights to regain."""
    found = set(succeeded)
    return found if os.geteuid() == 0 else found - {"setuid 0", "setgid 0", "setgroups"}


def test_a_compromised_worker_can_do_nothing(order: Confinement, victims: dict[str, int]) -> None:
    found = result_of(Plan(order=order, victims=victims))
    assert wanted(found.succeeded) == set()
    assert found.broken == []
    assert found.lacks is None
    assert len(found.refused) > 60
    assert found.user == (str(UID) if os.geteuid() == 0 else confinement.privileges.user_name(os.geteuid()))


def test_a_compromised_server_can_do_nothing(order: Confinement, victims: dict[str, int]) -> None:
    found = result_of(Plan(order=order, victims=victims, accepts=True))
    assert wanted(found.succeeded) == set()
    assert found.broken == []


@as_root
@pytest.mark.parametrize("absent", [NO_LANDLOCK, NO_NETWORK_NAMESPACE, NO_ROOT_DIRECTORY, NO_LIMITS])
def test_the_filter_replaces_another_layer(order: Confinement, victims: dict[str, int], absent: str) -> None:
    """As in a container, or with a kernel without it."""
    found = result_of(Plan(order=order, victims=victims, sabotage=absent))
    assert found.succeeded == (["more open files"] if absent == NO_LIMITS else [])


@as_root
def test_without_a_filter_sockets_reach_nothing(order: Confinement, victims: dict[str, int]) -> None:
    """As on an architecture without one: sockets are in an empty namespace."""
    others = {who: pid for who, pid in victims.items() if who != "its own user"}
    found = result_of(Plan(order=order, victims=others, sabotage=NO_FILTER))
    assert found.lacks == "this kernel or architecture has no seccomp filter"
    found.succeeded.remove("kill all")  # it succeeds even if all refuse: kernel/signal.c
    found.succeeded.remove("connect a listener by TCP Fast Open")  # it was created in the host's namespace
    kinds = ("kill", "tkill", "tgkill", "sigqueue", "ptrace", "process_vm_readv", "prlimit", "open", "setuid")
    assert not [name for name in found.succeeded if name.startswith(kinds) or "connect" in name]
    assert "fork" not in found.succeeded
    assert "thread" not in found.succeeded


@pytest.mark.parametrize("accepts", [True, False])
def test_a_required_filter_that_is_absent_ends_the_process(order: Confinement, accepts: bool) -> None:
    required = msgspec.structs.replace(order, sandbox="require")
    done = run(Plan(order=required, sabotage=NO_FILTER, accepts=accepts))
    assert (done.returncode, done.stdout) == (1, b"")
    assert (
        "cannot be confined as required: this kernel or architecture has no seccomp filter"
        in done.stderr.decode()
    )
    assert result_of(Plan(order=required, accepts=accepts)).lacks is None


@as_root
@pytest.mark.parametrize(
    ("sabotage", "complaint"),
    [
        (NO_FILTER + NO_NETWORK_NAMESPACE, "confined, and can still reach the network"),
        (NO_FILTER + NO_LANDLOCK + NO_ROOT_DIRECTORY, "confined, and can still open a file"),
        (NO_FILTER + NO_LANDLOCK + NO_USER, "confined, and can still signal the extension"),
        ("confinement._PR_SET_NO_NEW_PRIVS = 39", "cannot drop rights: [Errno 22]"),
    ],
    ids=["network", "files", "processes", "a step that fails"],
)
def test_a_process_that_holds_too_much_ends(
    order: Confinement, victims: dict[str, int], sabotage: str, complaint: str
) -> None:
    done = run(Plan(order=order, victims=victims, sabotage=sabotage))
    assert done.returncode == 1
    assert done.stdout == b""
    assert complaint in done.stderr.decode()


def test_abort_ends_a_confined_process_by_its_signal(order: Confinement) -> None:
    result_of(Plan(order=order, aborts=True), code=-signal.SIGABRT)


@as_root
def test_a_root_directory_that_is_not_empty_is_refused(order: Confinement, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = run(Plan(order=order))
    assert done.returncode == 1
    assert "is not empty: something" in done.stderr.decode()


def test_without_an_order_no_rights_are_dropped() -> None:
    name = confinement.privileges.user_name(os.geteuid())
    assert confinement.confine(None, open_files=5, accepts=False) == (name, None)
    assert subprocess.run(["true"], check=True).returncode == 0
