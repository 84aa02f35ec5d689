"""Starts, reaps and kills the extension's children.  Runs in the extension.

A child is this executable again with a role as its first argument: never a bare fork.  It gets /dev/null as
stdin, our stderr as stdout and stderr, its end of a socketpair as descriptor 3, and nothing else.  When its
channel closes, it releases what it holds and exits.  It ignores signals to all processes of a terminal.

A child may consist of several processes: the launcher of a frozen executable waits for the process that does
the work.  So each child leads a process group, which is killed as a whole.  If another program kills only the
first process, the open channel shows that one survives.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from usbipd import frozen
from usbipd.errors import IPCError
from usbipd.frozen import Unpacked
from usbipd.ipc import CHANNEL_DESCRIPTOR
from usbipd.ipc.async_channel import Channel, EventHandler, RequestHandler
from usbipd.ipc.children import CHILDREN
from usbipd.ipc.messages import Command, Nothing
from usbipd.ipc.row import Role
from usbipd.privileges import RunAs

_LOG: Final = logging.getLogger(__name__)

_CLEAN_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}

_FOR_THE_EXTENSION: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTOU,
)
"""Signals that are blocked in children."""

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
RESET_AFTER: Final = 60.0
"""Seconds after which a success resets the delay."""
END_TIME: Final = 5.0
"""Seconds for a child to exit once its channel is closed, unless workers need longer."""


class Backoff:
    """The delay before the next try: doubled each time up to a limit, with jitter, so that children that died
    of the same cause do not restart all at the same time."""

    def __init__(self, longest: float = LONGEST_DELAY) -> None:
        """`longest` is the limit, in seconds."""
        self._longest = longest
        self._failures = 0
        self._succeeded_at: float | None = None

    def succeeded(self) -> None:
        """The last try worked."""
        self._succeeded_at = asyncio.get_running_loop().time()

    def failed(self) -> float:
        """The last try failed, or its success has ended; returns the seconds to wait."""
        now = asyncio.get_running_loop().time()
        if self._succeeded_at is not None and now - self._succeeded_at >= RESET_AFTER:
            self._failures = 0
        self._succeeded_at = None
        delay = min(FIRST_DELAY * 2.0**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        return delay * random.uniform(0.75, 1.0)  # noqa: S311 - not a secret


class Ping(NamedTuple):
    """A PING to a child (`extension/liveness.py`)."""

    sent: float
    """Of the loop's clock, in seconds."""
    answer: asyncio.Task[None]
    """Done when the child has answered, or its channel is closed."""


@dataclass(slots=True, eq=False)
class Child:
    """One child process and the channel to it."""

    role: Role
    busid: str | None
    pid: int
    channel: Channel
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process has ended and the channel is closed."""
    ending: bool = False
    """Whether we have asked it to exit, or killed it: its end is no failure."""
    run_as: RunAs | None = None
    """The user that it should run as; None: our own."""
    user: str = "?"
    """The user that it runs as; unknown until it has reported it."""
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""
    killed: bool = False
    """Whether the claimer has killed it."""
    offence: IPCError | None = None
    """The violation for which it was killed."""
    exit: str | None = None
    """How it ended, such as "exit code 1" or "signal SIGKILL"; None: it has not ended."""
    ping: Ping | None = None
    """The last PING sent to it."""

    @property
    def label(self) -> str:
        return f"{self.role}[{self.pid}]" + (f" {self.busid}" if self.busid else "")

    @property
    def exited(self) -> bool:
        """Whether the program exited, with any code, and was not killed by a signal."""
        return self.exit is not None and self.exit.startswith("exit code")


class Spawner(Protocol):
    """The part of the supervisor that the rest of the extension uses."""

    def spawn(
        self, role: Role, busid: str | None, on_request: RequestHandler, on_event: EventHandler | None
    ) -> Child:
        """Start a child.  Raises `OSError`."""

    def kill(self, child: Child) -> None:
        """Kill a child; `child.ended` is set when it has ended."""


class Supervisor:
    """The extension's children."""

    def __init__(self, end_time: float = 0.0) -> None:
        """`end_time`: seconds that a worker may need to release its device."""
        self._end_time = max(END_TIME, end_time)
        self._children: dict[int, tuple[Child, socket.socket]] = {}
        """By pid: the children that are not reaped, with our ends of their channels."""
        self._unpacked = Unpacked() if frozen.IS_FROZEN else None

    def start(self) -> None:
        """Start to reap; call it inside the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def spawn(
        self, role: Role, busid: str | None, on_request: RequestHandler, on_event: EventHandler | None
    ) -> Child:
        """Start `role` and return at once; the child may still fail.  Raises `OSError`."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                pid = _execute(role, busid, theirs, self._unpacked)
            except OSError:
                ours.close()
                raise
        child: Child

        def closed(reason: IPCError | None) -> None:
            if reason is not None:
                _LOG.error("%s: channel closed: %s", child.label, reason)
            # The child reads end of file, releases what it holds and exits.  A child that broke the rules is
            # killed instead.
            if not self._is_running(child):
                child.ended.set()
            elif reason is not None and reason.code != "gone":
                child.offence = reason
                self.kill(child)
            else:
                loop.call_later(self._end_time, self.kill, child)

        channel = Channel(
            ours,
            name=f"{role}[{pid}]",
            role=role,
            table=CHILDREN,
            on_request=on_request,
            on_event=on_event,
            on_close=closed,
        )
        child = Child(role, busid, pid, channel)
        self._children[pid] = child, ours
        _LOG.debug("%s started", child.label)
        return child

    def hand_log_file(self, descriptor: int) -> None:
        """Have all children log to `descriptor`, which stays the caller's."""
        for child, _connection in self._children.values():
            child.channel.tell(Command.LOG_FILE, Nothing(), descriptor)

    def kill(self, child: Child) -> None:
        """Kill `child`; `child.ended` is set when it has ended."""
        if self._is_running(child):  # else it is reaped, and its pid may be reused
            child.ending = True
            # ESRCH or (macOS) EPERM: it has just exited.  Both: a compromised child may leave its group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(child.pid, signal.SIGKILL)

    def _is_running(self, child: Child) -> bool:
        """Whether `child` is not reaped yet."""
        known = self._children.get(child.pid)
        return known is not None and known[0] is child

    def _reap(self) -> None:
        for pid, (child, connection) in list(self._children.items()):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped == 0:
                continue
            del self._children[pid]
            child.exit = _exit_of(status) + (f": {child.offence}" if child.offence else "")
            if status != 0 and not child.ending:
                _LOG.error("%s ended with %s", child.label, child.exit)
            else:
                _LOG.debug("%s ended", child.label)
            if not child.channel.is_open:
                child.ended.set()
                continue
            # Its last messages are still to be read; then end of file closes the channel.  There is no end of
            # file while a process that the child left behind holds the channel.  With our side shut down,
            # that process reads end of file, releases what it holds and exits, as the child would have done.
            with contextlib.suppress(OSError):  # no process has the other end
                connection.shutdown(socket.SHUT_WR)
            asyncio.get_running_loop().call_later(self._end_time, self._give_up, child)

    def _give_up(self, child: Child) -> None:
        if child.channel.is_open:
            _LOG.error("%s has ended, but left a process behind that does not exit", child.label)
            child.channel.close()


async def wait_ended(child: Child, seconds: float) -> bool:
    """Whether `child` ends within `seconds`; works in a task that was cancelled and is cleaning up."""
    # Not asyncio.timeout: in such a task it cancels again instead of timing out (before Python 3.11.3).
    waiting = asyncio.create_task(child.ended.wait())
    done, _pending = await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
    return bool(done)


def _exit_of(status: int) -> str:
    """A wait status as text."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"


def seal_descriptors() -> None:
    """Set close-on-exec on every descriptor that we inherited, so that no child inherits it.

    Python sets it on those that it opens (PEP 446), and 0 to 2 are open (usbipd/__main__.py).
    """
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - only names are needed, on Linux and macOS
        descriptor = int(name)
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:  # listdir's own descriptor, closed by now
                continue


def _execute(role: Role, busid: str | None, channel: socket.socket, unpacked: Unpacked | None) -> int:
    arguments = [f"@{role}", *([busid] if busid else [])]
    environment = dict(_CLEAN_ENVIRONMENT)
    if unpacked is not None:
        command = ["usbipd-ext", *arguments]
        environment |= unpacked.environment()
    else:
        command = [sys.executable, "-I", "-m", "usbipd", *arguments]
    # Above 3, so that the dup2 below is not onto itself, which would leave close-on-exec set.
    above = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, CHANNEL_DESCRIPTOR + 1)
    try:
        return os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, 2, 1),
                (os.POSIX_SPAWN_DUP2, above, CHANNEL_DESCRIPTOR),
            ],
            setpgroup=0,
            # Terminals (Ctrl-C, Ctrl-\\, hangup) and service managers send signals to all processes; only the
            # extension handles them.  SIGTTOU would stop a child that logs to a terminal under `stty tostop`.
            # A blocked signal stays blocked across exec.
            setsigmask=_FOR_THE_EXTENSION,
            setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
        )
    finally:
        os.close(above)
