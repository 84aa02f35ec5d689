"""Seatbelt: the text of the profile, and a worker on a macOS that applies it, refuses it or does
not hold it.

Linux acts as macOS with a replacement of sandbox_init (tests/mac/sandbox.c) that really denies (seccomp).
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.as_mac import build_sandbox
from usbipd import seatbelt
from usbipd.ipc.children import Confinement
from usbipd.privileges import RunAs

UID = 65537

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user and a root directory to change")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has its own")

# ---- the text --------------------------------------------------------------------------------------------

Expression = str | list["Expression"]

OPERATIONS = {
    # those of macOS 10.15, read from its libsandbox: src/platform_data/catalina/operations.c of
    # https://github.com/0xbf00/simbple
    "default", "appleevent-send", "file*", "iokit-open", "iokit-set-properties", "ipc-posix*", "ipc-sysv*",
    "job-creation", "lsopen", "mach-lookup", "mach-register", "network*", "nvram*", "process-exec*",
    "process-fork", "process-info*", "signal", "sysctl-write", "system-socket", "user-preference*",
    # of macOS 13 and newer, from Apple's profiles: https://github.com/blacktop/ipsw-diffs
    "iokit-open-service", "iokit-open-user-client",
}  # fmt: skip


def parse(text: str) -> list[Expression]:
    """The expressions of a text in Scheme, a quoted name as "'name"."""
    tokens = re.findall(r""""[^"]*"|[()]|[^\s()"]+""", text)
    found: list[list[Expression]] = [[]]
    for token in tokens:
        if token == "(":
            found.append([])
        elif token == ")":
            assert len(found) > 1, "one closes too many"
            last = found.pop()
            found[-1].append(last)
        else:
            found[-1].append(token)
    assert len(found) == 1, "one is not closed"
    return found[0]


def rules() -> dict[str, list[tuple[str, list[Expression]]]]:
    """The rules of the profile for each operation, in its order: allow or deny, and the filters."""
    version, *lines = parse(seatbelt.PROFILE)
    assert version == ["version", "1"]
    said: dict[str, list[tuple[str, list[Expression]]]] = {}
    for line in lines:
        if line[0] == "if":
            _if, condition, line = line
            assert condition == ["defined?", f"'{line[1]}"], "an unknown one makes macOS refuse the profile"
        verdict, operation, *filters = line
        assert isinstance(verdict, str)
        assert isinstance(operation, str)
        said.setdefault(operation, []).append((verdict, filters))
    return said


def test_the_profile_names_operations_that_exist() -> None:
    assert set(rules()) <= OPERATIONS


def test_the_profile_denies_all_listed_operations_and_allows_only_usb() -> None:
    said = rules()
    assert said.pop("default") == [("allow", [])]
    for operation in seatbelt.DENIED_BUT_FOR_SELF:
        assert said.pop(operation) == [("deny", []), ("allow", [["target", "self"]])]
    assert set(said) == set(seatbelt.DENIED)
    assert all(verdicts[0] == ("deny", []) for verdicts in said.values())
    allowed = {operation: verdicts[1:] for operation, verdicts in said.items() if len(verdicts) > 1}
    assert set(allowed) == {"iokit-open", "iokit-open-user-client", "iokit-open-service"}
    classes = {
        (str(filter_[0]), filter_[1])
        for verdicts in allowed.values()
        for verdict, filters in verdicts
        for filter_ in filters
        if verdict == "allow"
    }
    assert {name for kind, name in classes if kind == "iokit-user-client-class"} == {
        f'"{name}"' for name in seatbelt.USER_CLIENTS
    }
    assert {name for kind, name in classes if kind == "iokit-registry-entry-class"} == {
        f'"{name}"' for name in seatbelt.SERVICES
    }


# ---- a process -------------------------------------------------------------------------------------------

CONFINE = """
import json, os, socket, sys, tempfile
import msgspec
from tests.as_mac import pretend
from usbipd import confinement, log, privileges
from usbipd.ipc.children import Confinement

pretend(confinement, privileges)
log.configure("worker", level="debug")
ours, theirs = socket.socketpair()
file = tempfile.TemporaryFile()
user, lacks = confinement.confine(
    msgspec.json.decode(sys.argv[1], type=Confinement), open_files=32, accepts=False
)
works = [each[0] for each in confinement.seatbelt.attempts() if confinement._what_works([each])]
# open descriptors keep working
ours.sendall(b"x")
assert theirs.recv(1) == b"x"
file.write(b"x")
file.flush()
bytearray(1 << 24)
os.kill(os.getpid(), 0)
print(json.dumps([user, lacks, works]))
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sandbox(tmp_path_factory.mktemp("sandbox"))


@pytest.fixture
def order(tmp_path: Path) -> Confinement:
    """The extension's order to a worker."""
    if os.geteuid() != 0:
        return Confinement(run_as=None, root=None)
    return Confinement(run_as=RunAs(user=str(UID), uid=UID, gid=UID), root=str(tmp_path))


def confine(
    order: Confinement, library: Path | None, **environment: str
) -> "subprocess.CompletedProcess[str]":
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    return subprocess.run(
        [sys.executable, "-c", CONFINE, msgspec.json.encode(order).decode()],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def parse_output(done: "subprocess.CompletedProcess[str]") -> list[object]:
    assert done.returncode == 0, done.stderr
    found: list[object] = msgspec.json.decode(done.stdout)
    return found


@on_linux
def test_the_profile_denies_all_attempts_and_allows_all_needs(order: Confinement, library: Path) -> None:
    _user, lacks, works = parse_output(confine(order, library))
    assert (lacks, works) == (None, [])


@on_linux
@as_root
def test_rights_are_dropped_before(order: Confinement, library: Path) -> None:
    done = confine(order, library)
    assert parse_output(done)[0] == str(UID)
    refused = confine(order, library, SANDBOX_REFUSES="1")
    user, lacks, works = parse_output(refused)
    assert user == str(UID)
    assert lacks == "this Mac refuses the Seatbelt profile: sandbox_init: profile refused"
    assert isinstance(works, list)
    assert set(works) == {"reach the network", "bind a socket", "open another driver"}, (
        "no other layer stops these"
    )


@on_linux
@pytest.mark.parametrize(
    ("left", "works"),
    [
        ("file*", "open a file"),
        ("network*", "reach the network"),
        ("signal", "signal the extension"),
        ("iokit-open", "open another driver"),
        pytest.param("process-fork", "start a process", marks=as_root),  # limits do not apply to root
        pytest.param("process-fork process-exec*", "start a program", marks=as_root),
    ],
)
def test_a_profile_that_does_not_hold_is_detected(library: Path, left: str, works: str) -> None:
    order = Confinement(run_as=None, root=None)  # no other layer replaces it
    lacks = f"the Seatbelt profile does not hold: it can still {works}"
    assert parse_output(confine(order, library, SANDBOX_LEAVES=left))[1] == lacks
    required = msgspec.structs.replace(order, sandbox="require")
    done = confine(required, library, SANDBOX_LEAVES=left)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot be confined as required: {lacks}" in done.stderr


@on_linux
@pytest.mark.parametrize("is_there", [True, False])
def test_a_mac_without_the_sandbox(order: Confinement, library: Path, is_there: bool) -> None:
    preloaded = library if is_there else None
    why = "sandbox_init: profile refused" if is_there else "sandbox_init does not exist"
    lacks = parse_output(confine(order, preloaded, SANDBOX_REFUSES="1"))[1]
    assert lacks == f"this Mac refuses the Seatbelt profile: {why}"
    required = msgspec.structs.replace(order, sandbox="require")
    done = confine(required, preloaded, SANDBOX_REFUSES="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot be confined as required: this Mac refuses the Seatbelt profile: {why}" in done.stderr


@on_linux
def test_a_worker_without_confinement_is_in_no_sandbox(library: Path) -> None:
    order = Confinement(run_as=None, root=None, sandbox="off")
    _user, lacks, works = parse_output(confine(order, library))
    assert lacks is None
    assert isinstance(works, list)
    assert {"open a file", "reach the network", "signal the extension"} <= set(works)
