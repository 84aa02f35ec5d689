"""Starts the extension's children, reaps them, ends them.  Runs in the extension.

A child is this executable again with a role as its first argument: never a bare fork.  It gets /dev/null as
stdin, our stderr as stdout and stderr, its end of a socketpair as descriptor 3, and nothing else.  It ends
when its channel does, having given back what it holds, and not of a signal to all processes of a terminal.

A child may turn out to be several processes: the launcher of a frozen executable waits for the one that does
the work.  So each child leads a process group, and is killed with all of it.  Where somebody else kills the
first process alone, the channel shows that another one lives.
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
"""Signals that its children do not hear."""

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 30.0
WELL_AFTER: Final = 60.0
"""Seconds that a child must have lived for its failures before to be forgotten."""
LETTING_GO: Final = 5.0
"""Seconds that a child has to end once its channel is closed, unless a worker needs longer."""


class Backoff:
    """How long to wait before the next try: doubled each time up to a bound, with jitter, so that many
    children that died of one cause do not all come back at one moment."""

    def __init__(self, longest: float = LONGEST_DELAY) -> None:
        """`longest` is the bound, in seconds."""
        self._longest = longest
        self._failures = 0
        self._well_since: float | None = None

    def succeeded(self) -> None:
        """The try that began now works so far."""
        self._well_since = asyncio.get_running_loop().time()

    def failed(self) -> float:
        """It failed, or what worked has ended: the seconds to wait now."""
        now = asyncio.get_running_loop().time()
        if self._well_since is not None and now - self._well_since >= WELL_AFTER:
            self._failures = 0
        self._well_since = None
        delay = min(FIRST_DELAY * 2.0**self._failures, self._longest)
        self._failures = min(self._failures + 1, 16)
        return delay * random.uniform(0.75, 1.0)  # noqa: S311 - nobody gains by guessing it


class Ping(NamedTuple):
    """A PING to a child (`extension/liveness.py`)."""

    sent: float
    """Of the loop's clock, in seconds."""
    answer: asyncio.Task[None]
    """Done when the child has answered, or its channel is closed."""


@dataclass(slots=True, eq=False)
class Child:
    """One process of ours and the channel to it."""

    role: Role
    busid: str | None
    pid: int
    channel: Channel
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when process and channel are both over."""
    ending: bool = False
    """Whether we have asked it to end, or killed it: its end is no failure."""
    run_as: RunAs | None = None
    """The user that it becomes; None: it stays what we are."""
    user: str = "?"
    """Whom it runs as; known once it has said so."""
    lacks: str | None = None
    """What its confinement lacks; None: nothing."""
    killed: bool = False
    """Whether the claimer has killed it."""
    offence: IPCError | None = None
    """The rule of the channel that it broke, for which it was killed."""
    exit: str | None = None
    """What it ended with, such as "exit code 1" or "signal SIGKILL"; None: it has not ended."""
    ping: Ping | None = None
    """The last PING sent to it."""

    @property
    def label(self) -> str:
        return f"{self.role}[{self.pid}]" + (f" {self.busid}" if self.busid else "")

    @property
    def ended_by_itself(self) -> bool:
        """Whether its program has come to its end, rightly or not; no signal has stopped it on the way."""
        return self.exit is not None and self.exit.startswith("exit code")


class Spawner(Protocol):
    """What the rest of the extension needs of the supervisor."""

    def spawn(
        self, role: Role, busid: str | None, on_request: RequestHandler, on_event: EventHandler | None
    ) -> Child:
        """Start a child.  Raises `OSError`."""

    def kill(self, child: Child) -> None:
        """End a child at once; `child.ended` says when."""


class Supervisor:
    """The extension's children."""

    def __init__(self, end_time: float = 0.0) -> None:
        """`end_time`: seconds that a worker may need to give its device back."""
        self._letting_go = max(LETTING_GO, end_time)
        self._children: dict[int, tuple[Child, socket.socket]] = {}
        """By pid those that are not reaped, with our ends of their channels."""
        self._unpacked = Unpacked() if frozen.IS_FROZEN else None

    def start(self) -> None:
        """Begin to reap; inside the running loop."""
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
                _LOG.error("%s: %s: ended", child.label, reason)
            # The child sees the end of its channel, gives back what it holds and ends; one that broke the
            # rules is not trusted with that.
            if not self._is_running(child):
                child.ended.set()
            elif reason is not None and reason.code != "gone":
                child.offence = reason
                self.kill(child)
            else:
                loop.call_later(self._letting_go, self.kill, child)

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
        """Make the file behind `descriptor`, which stays the caller's, the log of all children."""
        for child, _connection in self._children.values():
            child.channel.tell(Command.LOG_FILE, Nothing(), descriptor)

    def kill(self, child: Child) -> None:
        """End `child` at once, whatever it does; `child.ended` says when."""
        if self._is_running(child):  # else it is reaped and the number may be another's
            child.ending = True
            # one that has just ended by itself: macOS says so with ESRCH or EPERM
            for kill in (os.killpg, os.kill):  # also by itself: one that was taken over may leave its group
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(child.pid, signal.SIGKILL)

    def _is_running(self, child: Child) -> bool:
        """Whether it is not reaped yet."""
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
            # What it said last is still to be read; the end of its stream then closes the channel.  That end
            # does not come while another process holds the channel: one that the child has left behind.  It
            # reads an end of file now, gives back what it holds, and ends as the child would have done.
            with contextlib.suppress(OSError):  # nobody is there
                connection.shutdown(socket.SHUT_WR)
            asyncio.get_running_loop().call_later(self._letting_go, self._give_up, child)

    def _give_up(self, child: Child) -> None:
        if child.channel.is_open:
            _LOG.error("%s is dead and left a process behind that does not end", child.label)
            child.channel.close()


async def wait_ended(child: Child, seconds: float) -> bool:
    """Whether `child` ends within `seconds`; also for a task that was cancelled and cleans up."""
    # Not asyncio.timeout: in such a task it cancels once more instead of timing out (before Python 3.11.3).
    waiting = asyncio.create_task(child.ended.wait())
    done, _pending = await asyncio.wait({waiting}, timeout=seconds)
    waiting.cancel()
    return bool(done)


def _exit_of(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"


def seal_descriptors() -> None:
    """Make every descriptor that we inherited close on exec, so that no child inherits it from us.

    Python's own are so from the start (PEP 446), and 0 to 2 are open (usbipd/__main__.py).
    """
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names are all we need, on Linux and macOS
        descriptor = int(name)
        if descriptor > 2:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:  # the one with which the directory was read
                continue


def _execute(role: Role, busid: str | None, channel: socket.socket, unpacked: Unpacked | None) -> int:
    arguments = [f"@{role}", *([busid] if busid else [])]
    environment = dict(_CLEAN_ENVIRONMENT)
    if unpacked is not None:
        command = ["usbipd-ext", *arguments]
        environment |= unpacked.environment()
    else:
        command = [sys.executable, "-I", "-m", "usbipd", *arguments]
    # Above 3, so that the dup2 below is not one onto itself, which would leave close-on-exec set.
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
            # Ctrl-C, Ctrl-\\ and the end of the terminal reach all its processes, a stopping service manager
            # all of the service, and it may send them any other; the extension decides.  SIGTTOU would stop
            # a child that logs to a terminal under `stty tostop`.  A blocked signal stays so.
            setsigmask=_FOR_THE_EXTENSION,
            setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
        )
    finally:
        os.close(above)
