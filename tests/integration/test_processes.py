"""The processes of a whole daemon: their rights and descriptors, and the death of each."""

import itertools
import os
import pwd
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests.client import Client, ClosedError, Session
from tests.integration.conftest import ECHO_IN, ECHO_OUT, StartDaemon
from tests.integration.daemon import COMMAND, PATIENCE, Daemon, running, until
from tests.programs import EXECUTABLE
from usbipd.worker_uids import DEFAULT_UIDS, parse_uids

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")


def processes(daemon: Daemon, role: str) -> list[dict[str, Any]]:
    return [process for process in daemon.status()["processes"] if process["role"] == role]


def pid_of(daemon: Daemon, role: str) -> int:
    [process] = processes(daemon, role)
    return int(process["pid"])


def descriptors(pid: int) -> dict[int, str]:
    """The target of each descriptor of a process, such as `socket`, `pipe` or a path.

    Without that of libffi: from 3.5 on, the library keeps its own file open for reading, to map
    trampolines; ctypes creates some at import.
    """
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if Path(target).name.startswith("libffi.so."):
            continue
        found[int(link.name)] = target if target.startswith("/") else target.partition(":[")[0]
    return found


def field(pid: int, name: str) -> list[str]:
    """A line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(f"{name}:"))


def echo(session: Session, text: bytes) -> None:
    assert session.bulk_out(ECHO_OUT, text) == len(text)
    assert session.bulk_in(ECHO_IN, 512) == text


@on_linux
def test_every_process_holds_only_what_it_needs(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("serial,loopback")
    session = Client(daemon.host, daemon.port).import_device(daemon.busid("serial"))
    [server] = processes(daemon, "server")
    workers = {process["busid"]: descriptors(process["pid"]) for process in processes(daemon, "worker")}
    held = descriptors(server["pid"])
    standard = {0: os.devnull, 1: "pipe", 2: "pipe", 3: "socket"}
    for each in (held, *workers.values()):
        assert {number: each[number] for number in range(4)} == standard
    # asyncio's epoll and the socketpair that wakes it, and one listening socket
    others = sorted(held[number] for number in held if number > 3)
    assert others == ["anon_inode", "socket", "socket", "socket"]
    idle = workers[daemon.busid("loopback")]
    attached = workers[daemon.busid("serial")]
    assert sum(target == "socket" for target in idle.values()) == 1
    assert sum(target == "socket" for target in attached.values()) == 2, "its channel and its client"
    for each in workers.values():
        assert os.devnull not in {target for number, target in each.items() if number > 0}
    session.close()


@on_linux
@as_root
def test_server_and_workers_have_no_rights(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback")
    [server], [worker] = processes(daemon, "server"), processes(daemon, "worker")
    user, uid = pwd.getpwnam(server["user"]), int(worker["user"])
    assert uid in parse_uids(DEFAULT_UIDS)
    for process, uids, gids in (
        (server, {str(user.pw_uid)}, {str(user.pw_gid)}),
        (worker, {str(uid)}, {str(uid)}),
    ):
        pid = process["pid"]
        assert "0" not in uids
        assert set(field(pid, "Uid")) == uids
        assert set(field(pid, "Gid")) == gids
        assert field(pid, "Groups") == []
        assert list(Path(f"/proc/{pid}/root").iterdir()) == []
        assert {int(field(pid, name)[0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert field(pid, "NoNewPrivs") == ["1"]
    [extension] = processes(daemon, "extension")
    assert extension["user"] == "root"


@on_linux
@as_root
@pytest.mark.parametrize("confine", ["auto", "require", "off"])
def test_how_far_a_worker_is_confined(start_daemon: StartDaemon, confine: str) -> None:
    """This host has all layers."""
    daemon = start_daemon("loopback", f'confine = "{confine}"')
    [server], [worker] = processes(daemon, "server"), processes(daemon, "worker")
    assert server["user"] != "root"
    assert (worker["user"] == "root") == (confine == "off")
    assert field(worker["pid"], "Seccomp") == ["0" if confine == "off" else "2"]
    assert {each["lacks"] for each in daemon.status()["processes"]} == {None}
    warnings = [each["message"] for each in daemon.document("doctor")["checks"] if each["state"] == "warning"]
    assert any('workers run as root (confine = "off")' in each for each in warnings) == (confine == "off")


@on_linux
@as_root
def test_no_child_can_signal_or_slow_down_another(start_daemon: StartDaemon) -> None:
    """Their user ids ensure that; tests/unit/test_confinement.py shows what each process denies itself."""
    daemon = start_daemon("loopback,serial,keyboard")
    children = [each for role in ("server", "worker") for each in processes(daemon, role)]
    for one, other in itertools.permutations(children, 2):
        uid, victim = int(field(one["pid"], "Uid")[0]), other["pid"]
        acts: dict[str, Callable[[], object]] = {
            "signal": partial(os.kill, victim, 0),
            "limits": partial(resource.prlimit, victim, resource.RLIMIT_NOFILE, (4, 4)),
            "processors": partial(os.sched_setaffinity, victim, {0}),
            "priority": partial(os.setpriority, os.PRIO_PROCESS, victim, 19),
            "memory": partial(os.open, f"/proc/{victim}/mem", os.O_RDWR),
        }
        assert [name for name, act in acts.items() if not is_refused(uid, act)] == [], (one, other)


def is_refused(uid: int, act: Callable[[], object]) -> bool:
    """Whether a process of this user is refused it."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            act()
            code = 1
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0


def few_uids(number: int) -> list[int]:
    """A range that probably no other daemon of this host uses."""
    first = parse_uids(DEFAULT_UIDS)[1000] + os.getpid() % 30000
    return [first + index for index in range(number)]


@on_linux
@as_root
def test_the_user_id_of_a_worker_is_reused_after_it(start_daemon: StartDaemon) -> None:
    first, second = few_uids(2)
    daemon = start_daemon("loopback,serial", f'worker_uids = "{first}-{second}"')
    users = {each["user"] for each in processes(daemon, "worker")}
    assert users == {str(first), str(second)}
    for busid in (daemon.busid("loopback"), daemon.busid("serial")):
        before = daemon.worker_pid(busid)
        os.kill(before, signal.SIGKILL)
        until(lambda busid=busid, before=before: daemon.device(busid)["worker_pid"] not in (None, before))
    assert {each["user"] for each in processes(daemon, "worker")} == users


@on_linux
@as_root
def test_more_devices_than_users_for_workers(tmp_path: Path) -> None:
    [uid] = few_uids(1)
    file = tmp_path / "usbipd.toml"
    file.write_text(f'worker_uids = "{uid}-{uid}"\n')
    options = [
        "--simulate",
        "loopback,serial",
        "--socket",
        str(tmp_path / "control.sock"),
        "--config",
        str(file),
    ]
    done = start_and_fail("--run", "--listen", "127.0.0.1:0", *options)
    assert done.returncode == 1
    assert "all 1 user ids for workers are in use" in done.stderr
    assert "hint: set a larger range for worker_uids in usbipd.toml" in done.stderr


def start_and_fail(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@on_linux
@as_root
def test_user_ids_in_use_are_refused(tmp_path: Path) -> None:
    """By --run and by --check-config, with the same message."""
    file = tmp_path / "usbipd.toml"
    file.write_text('worker_uids = "65500-65540"\n')
    for action in (["--run", "--socket", str(tmp_path / "control.sock")], ["--check-config"]):
        done = start_and_fail(*action, "--config", str(file))
        assert done.returncode == 2
        assert f"{file}, line 1: worker_uids: '65500-65540' cannot be the user ids of workers" in done.stderr
        assert "65500 to 65519 are for services of systemd" in done.stderr


@on_linux
def test_the_environment_of_children_is_clean(
    start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    daemon = start_daemon("loopback")
    for role in ("server", "worker"):
        content = Path(f"/proc/{pid_of(daemon, role)}/environ").read_bytes()
        names = {entry.partition(b"=")[0] for entry in content.split(b"\0") if entry}
        unpacked = {name for name in names if name.startswith(b"_PYI_") or name == b"LD_LIBRARY_PATH"}
        assert names - unpacked == {b"PATH", b"LANG"}
        assert bool(unpacked) == (EXECUTABLE is not None), "where the executable's files are"


def test_a_killed_server_is_replaced_and_attached_clients_do_not_notice(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("serial,loopback")
    client = Client(daemon.host, daemon.port)
    with client.import_device(daemon.busid("serial")) as session:
        echo(session, b"before")
        old = pid_of(daemon, "server")
        os.kill(old, signal.SIGKILL)
        echo(session, b"meanwhile")
        daemon.log.wait_for(f"server[{old}] ended with signal SIGKILL")
        until(lambda: [process["pid"] for process in processes(daemon, "server")] not in ([], [old]))
        echo(session, b"after")
        assert len(client.devlist()) == 2, "on the same port"
        with client.import_device(daemon.busid("loopback")):
            pass


def test_a_killed_worker_closes_its_connection_and_its_device_is_claimed_again(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("serial,serial")
    client = Client(daemon.host, daemon.port)
    busid, other = daemon.busid("serial"), daemon.busid("serial", 1)
    with client.import_device(busid) as session, client.import_device(other) as bystander:
        echo(session, b"before")
        old = daemon.worker_pid(busid)
        os.kill(old, signal.SIGKILL)
        with pytest.raises(ClosedError):
            session.bulk_in(ECHO_IN, 512)
        with client.import_device(busid) as again:
            echo(again, b"after")
            assert daemon.worker_pid(busid) != old
        echo(bystander, b"undisturbed")


@on_linux
def test_children_of_a_killed_extension_end(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "serial,loopback")
    client = Client(daemon.host, daemon.port)
    children = [process["pid"] for process in daemon.status()["processes"] if process["role"] != "extension"]
    assert len(children) == 3
    with client.import_device(daemon.busid("serial")) as session:
        daemon.kill()
        with pytest.raises(ClosedError):
            session.bulk_in(ECHO_IN, 512)
    until(lambda: not running(children))
    successor = Daemon(tmp_path, "serial,loopback")  # on the same control socket
    successor.stop()


def test_shutdown_takes_less_than_two_seconds(tmp_path: Path) -> None:
    """With attached clients that have URBs in flight, and one without a request."""
    daemon = Daemon(tmp_path, "serial,serial,loopback,keyboard,audio,mass-storage")
    client = Client(daemon.host, daemon.port)
    idle = client.connect()
    sessions = [client.import_device(daemon.busid("serial", instance)) for instance in range(2)]
    for session in sessions:
        session.submit(ECHO_IN, length=512)
    start = time.monotonic()
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(PATIENCE) == 0
    assert time.monotonic() - start < 2.0
    assert not daemon.socket.exists()
    for session in sessions:
        with pytest.raises(ClosedError):
            session.bulk_in(ECHO_IN, 512)
        session.close()
    idle.close()


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2],
)
def test_a_signal_to_all_processes_is_for_the_extension(
    start_daemon: StartDaemon, number: signal.Signals
) -> None:
    """Terminals and service managers send it to all processes; the extension acts and informs the others."""
    daemon = start_daemon("serial,loopback")
    for process in daemon.status()["processes"]:
        if process["role"] != "extension":
            os.kill(process["pid"], number)
    with Client(daemon.host, daemon.port).import_device(daemon.busid("serial")) as session:
        echo(session, b"nothing happened")


def start_with_output(tmp_path: Path, output: IO[bytes]) -> "subprocess.Popen[str]":
    """An extension that prints to `output`."""
    where = ["--listen", "127.0.0.1:0", "--socket", str(tmp_path / "run" / "control.sock")]
    return subprocess.Popen(
        [*COMMAND, "--run", "--simulate", "loopback,serial", *where],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_while_devices_are_being_claimed(tmp_path: Path) -> None:
    with Path(os.devnull).open("wb") as nowhere, start_with_output(tmp_path, nowhere) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if " listens on " in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
    log = "".join(lines)
    assert "ERROR" not in log, log
    assert "Traceback" not in log, log
    assert not (tmp_path / "run").exists()


@on_linux
def test_unread_output_does_not_block_the_extension(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full, start_with_output(tmp_path, full) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if sum(" claimed " in each for each in lines) == 2 and "claimed" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0, lines


def test_shutdown_takes_less_than_two_seconds_with_a_worker_that_hangs(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "loopback,serial")
    os.kill(daemon.worker_pid(daemon.busid("loopback")), signal.SIGSTOP)
    start = time.monotonic()
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(PATIENCE) == 0
    assert time.monotonic() - start < 2.0
    assert "did not release its device" in daemon.log.close()
    daemon.output.close()


def start_second(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """A second extension, which cannot start."""
    return subprocess.run(
        [*COMMAND, "--run", "--simulate", "loopback", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_second_extension_says_why_it_does_not_start(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("loopback")
    done = start_second("--listen", "127.0.0.1:0", "--socket", str(daemon.socket))
    assert done.returncode == 1
    assert "an extension is already running" in done.stderr
    assert len(Client(daemon.host, daemon.port).devlist()) == 1


def test_a_port_in_use_is_one_line_and_leaves_nothing(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon("loopback")
    path = tmp_path / "second" / "control.sock"
    done = start_second("--listen", f"{daemon.host}:{daemon.port}", "--socket", str(path))
    assert done.returncode == 1
    assert f"cannot listen on {daemon.host}:{daemon.port}: another program uses it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not path.parent.exists()


def test_descriptors_do_not_grow(start_daemon: StartDaemon) -> None:
    """50 attachments leak no descriptor in any process."""
    daemon = start_daemon("serial")
    client = Client(daemon.host, daemon.port)

    def held() -> dict[int, int]:
        return {
            process["pid"]: psutil.Process(process["pid"]).num_fds()
            for process in daemon.status()["processes"]
        }

    busid = daemon.busid("serial")
    client.import_device(busid).close()
    daemon.wait_for_state(busid, "shared")
    before = held()
    for _turn in range(50):
        client.import_device(busid).close()
    daemon.wait_for_state(busid, "shared")
    # `before` may count a connection that was just being closed, so fewer is fine
    until(lambda: all(number <= before[pid] for pid, number in held().items()))
