"""Starting, reaping and killing children: real processes, whose script reports what it was given."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.extension.fakes import PATIENCE
from usbipd import frozen
from usbipd.errors import UsbipdError
from usbipd.extension import supervisor as module
from usbipd.extension.supervisor import Backoff, Child, Supervisor, seal_descriptors, wait_ended
from usbipd.ipc.children import DetachedParameters
from usbipd.ipc.conversation import Event, Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import EventName
from usbipd.ipc.row import Role

SCRIPT = """\
    #!{python} -I
    import json, os, signal, socket, sys, time
    sys.path.insert(0, {root!r})

    found = {{
        "arguments": sys.argv[1:],
        "descriptors": sorted(fd for fd in range(64) if os.path.exists(f"/dev/fd/{{fd}}")),
        "environment": dict(os.environ),
        "input": os.readlink("/proc/self/fd/0") if os.path.exists("/proc/self/fd/0") else "/dev/null",
        "output_is_errors": os.path.sameopenfile(1, 2),
        "leads_its_group": os.getpgrp() == os.getpid(),
        "blocked": sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }}
    # libffi 3.5 keeps a file open
    from usbipd.ipc.blocking_channel import BlockingChannel
    from usbipd.ipc.children import CHILDREN, DetachedParameters
    from usbipd.ipc.messages import EventName, Nothing
    channel = BlockingChannel(socket.socket(fileno=3), "test", CHILDREN)
    channel.push(EventName.DETACHED, DetachedParameters(reason=json.dumps(found)))
"""

WAIT_FOR_END = "channel.receive()"
IGNORE_END = "signal.pause()"
LEAVE_THE_GROUP = """\
os.setpgid(0, os.getpgid(os.getppid()))
channel.push(EventName.RESTORED, Nothing())
signal.pause()
"""
LEAVE_A_PROCESS = """\
if os.fork():
    signal.pause()
channel.push(EventName.DETACHED, DetachedParameters(reason=json.dumps(os.getpid())))
"""
"""A launcher and the process that does the work.  The rest is for the second."""
SAY_THAT_IT_ENDED = """\
while channel.receive() is not None:
    pass
channel.push(EventName.DETACHED, DetachedParameters(reason=json.dumps("it has ended")))
"""


async def refuse(request: Request) -> Message:
    raise UsbipdError("no")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the children run the script, ending with the statement `then`, as if it were frozen."""

    def write(then: str) -> None:
        path = tmp_path / "child"
        root = str(Path(__file__).parents[3])
        path.write_text(dedent(SCRIPT).format(python=sys.executable, root=root) + then)
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        monkeypatch.setattr(frozen, "IS_FROZEN", True)
        monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)

    return write


async def start(supervisor: Supervisor) -> tuple[Child, dict[str, object]]:
    """A child, and what its script reported."""
    reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def listen(event: Event) -> None:
        assert isinstance(event.parameters, DetachedParameters)
        reason.set_result(event.parameters.reason)

    child = supervisor.spawn(Role.WORKER, "240-1", refuse, listen)
    async with asyncio.timeout(PATIENCE):
        return child, json.loads(await reason)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_gets_its_channel_and_nothing_else(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(WAIT_FOR_END)
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PYTHONPATH", "/tmp")
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "/unpacked")
    supervisor = Supervisor()
    supervisor.start()
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    seal_descriptors()
    child, found = await start(supervisor)
    assert found["arguments"] == ["@worker", "240-1"]
    assert found["descriptors"] == [0, 1, 2, 3]
    assert found["input"] == "/dev/null"
    assert found["output_is_errors"]
    ending = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    blocked = ending | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU}
    assert found["blocked"] == sorted(blocked)
    assert found["leads_its_group"]
    environment = found["environment"]
    assert isinstance(environment, dict)
    assert environment.keys() - {"LC_CTYPE", "LD_LIBRARY_PATH"} == {"PATH", "LANG", "_PYI_ARCHIVE_FILE"}
    child.channel.close()
    assert await wait_ended(child, PATIENCE)
    assert not is_running(child.pid)
    os.close(inherited)


async def test_a_child_that_dies_is_reaped_and_reported(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    script("sys.exit(3)")
    supervisor = Supervisor()
    supervisor.start()
    child, _found = await start(supervisor)
    assert await wait_ended(child, PATIENCE)
    assert not child.channel.is_open
    assert not is_running(child.pid)
    assert child.exit == "exit code 3"
    supervisor.kill(child)  # the pid may be reused by now: no effect
    assert "240-1 ended with exit code 3" in caplog.text


@pytest.mark.parametrize(
    ("then", "exit_"),
    [
        ("", "exit code 0"),
        ("import no_such_module", "exit code 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 5)", f"signal {signal.SIGRTMIN + 5}"),
    ],
)
async def test_the_exit_status_of_a_child(script: Callable[[str], None], then: str, exit_: str) -> None:
    script(then)
    supervisor = Supervisor()
    supervisor.start()
    child, _found = await start(supervisor)
    assert await wait_ended(child, PATIENCE)
    assert child.exit == exit_


async def test_a_child_is_killed(script: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    script(IGNORE_END)
    supervisor = Supervisor()
    supervisor.start()
    child, _found = await start(supervisor)
    assert not await wait_ended(child, 0.0)
    assert child.exit is None
    supervisor.kill(child)
    assert await wait_ended(child, PATIENCE)
    assert child.exit == "signal SIGKILL"
    assert "SIGKILL" not in caplog.text, "we killed it"


async def test_a_child_that_has_left_its_group_is_killed(script: Callable[[str], None]) -> None:
    """It joined the extension's, as a compromised child may do."""
    script(LEAVE_THE_GROUP)
    supervisor = Supervisor()
    supervisor.start()
    has_left = asyncio.Event()

    def on_event(event: Event) -> None:
        if event.event is EventName.RESTORED:
            has_left.set()

    child = supervisor.spawn(Role.WORKER, "240-1", refuse, on_event)
    await has_left.wait()
    supervisor.kill(child)
    assert await wait_ended(child, PATIENCE)
    assert not is_running(child.pid)


async def test_a_child_that_does_not_end_with_its_channel_is_killed(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(IGNORE_END)
    monkeypatch.setattr(module, "END_TIME", 0.01)
    supervisor = Supervisor()
    supervisor.start()
    child, _found = await start(supervisor)
    child.channel.close()
    assert await wait_ended(child, PATIENCE)


async def test_a_child_that_breaks_the_rules_is_killed(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    script("os.write(3, bytes(100)); signal.pause()")
    supervisor = Supervisor()
    supervisor.start()
    child, _found = await start(supervisor)
    assert await wait_ended(child, PATIENCE)

    assert child.exit is not None
    assert child.exit.startswith("signal SIGKILL: frame of 0 bytes")
    assert "frame of 0 bytes" in caplog.text


async def test_a_child_that_breaks_the_rules_and_dies_has_ended(script: Callable[[str], None]) -> None:
    """It is reaped before its last message is read."""
    script("os.write(3, bytes(100))")
    supervisor = Supervisor()
    child = supervisor.spawn(Role.WORKER, "240-1", refuse, lambda _event: None)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - nothing else may run
    supervisor._reap()
    assert await wait_ended(child, PATIENCE)
    assert child.exit == "exit code 0"


async def start_family(supervisor: Supervisor) -> tuple[Child, int, asyncio.Queue[object]]:
    """A child that left a process behind: the child, the pid of that process, and its output."""
    reasons: asyncio.Queue[object] = asyncio.Queue()

    def listen(event: Event) -> None:
        assert isinstance(event.parameters, DetachedParameters)
        reasons.put_nowait(json.loads(event.parameters.reason))

    child = supervisor.spawn(Role.WORKER, "240-1", refuse, listen)
    async with asyncio.timeout(PATIENCE):
        await reasons.get()
        pid = await reasons.get()
    assert isinstance(pid, int)
    return child, pid, reasons


async def test_a_process_left_behind_by_a_killed_child_reads_end_of_file(
    script: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The child counts as ended only when that process has ended: it holds the device until then."""
    script(LEAVE_A_PROCESS + SAY_THAT_IT_ENDED)
    supervisor = Supervisor()
    supervisor.start()
    child, _pid, reasons = await start_family(supervisor)
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert await reasons.get() == "it has ended"
    assert await wait_ended(child, PATIENCE)
    assert child.exit == "signal SIGKILL"
    assert "240-1 ended with signal SIGKILL" in caplog.text
    assert "left a process" not in caplog.text


async def test_a_child_gets_the_time_that_releasing_its_device_takes(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(IGNORE_END)
    monkeypatch.setattr(module, "END_TIME", 0.01)
    supervisor = Supervisor(end_time=PATIENCE)
    supervisor.start()
    child, _found = await start(supervisor)
    child.channel.close()
    assert not await wait_ended(child, 0.2)
    supervisor.kill(child)
    assert await wait_ended(child, PATIENCE)


async def test_a_process_left_behind_that_does_not_exit_is_given_up(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    script(LEAVE_A_PROCESS + IGNORE_END)
    monkeypatch.setattr(module, "END_TIME", 0.01)
    supervisor = Supervisor()
    supervisor.start()
    child, pid, _told = await start_family(supervisor)
    os.kill(child.pid, signal.SIGKILL)
    assert await wait_ended(child, PATIENCE)
    assert not child.channel.is_open
    os.kill(pid, signal.SIGKILL)
    assert "240-1 has ended, but left a process behind that does not exit" in caplog.text


async def test_the_process_group_of_a_child_is_killed(
    script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(LEAVE_A_PROCESS + IGNORE_END)
    monkeypatch.setattr(module, "END_TIME", 10 * PATIENCE)
    supervisor = Supervisor()
    supervisor.start()
    child, _pid, _told = await start_family(supervisor)
    supervisor.kill(child)
    assert await wait_ended(child, PATIENCE), "the channel closes when no process holds it"


async def test_a_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/file")
    supervisor = Supervisor()
    supervisor.start()
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(OSError, match="No such file"):
        supervisor.spawn(Role.SERVER, None, refuse, None)
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_sealing_leaves_the_standard_descriptors() -> None:
    one, other = socket.socketpair()
    os.set_inheritable(one.fileno(), True)
    before = [os.get_inheritable(number) for number in range(3)]
    seal_descriptors()
    assert [os.get_inheritable(number) for number in range(3)] == before
    assert not os.get_inheritable(one.fileno())
    one.close()
    other.close()


async def test_the_delay_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.1)
    backoff = Backoff()
    delays = [backoff.failed() for _number in range(20)]
    for number, delay in enumerate(delays):
        longest = min(0.1 * 2**number, module.LONGEST_DELAY)
        assert 0.75 * longest <= delay <= longest
    backoff.succeeded()
    assert backoff.failed() > 20, "the success did not last"
    monkeypatch.setattr(module, "RESET_AFTER", 0.0)
    backoff.succeeded()
    assert backoff.failed() <= 0.1
    assert backoff.failed() > 0.1, "no try has worked since"
