"""The connection of a command to the extension's control socket.  Runs in the caller's process."""

import os
import socket
import stat
from types import TracebackType
from typing import Final, Self, TypeVar

from usbipd.control_socket import MAX_SOCKET_PATH, system_control_socket, usual_control_socket
from usbipd.errors import ExtensionUnreachableError, IPCError, UsageError
from usbipd.ipc.blocking_channel import BlockingChannel, Wait, wait_readable
from usbipd.ipc.control_messages import PEOPLE
from usbipd.ipc.conversation import Event
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command

ANSWER_TIMEOUT: Final = 30.0
"""Seconds; reattaching a driver takes a few."""

Result = TypeVar("Result", bound=Message)


class ControlConnection:
    """Sends requests to the extension; `close` and the end of the `with` block disconnect.

    It can be opened again after `close`, perhaps to another extension.
    """

    def __init__(self, path: str | None, *, timeout: float = ANSWER_TIMEOUT) -> None:
        """`path`: the control socket; None: the usual one."""
        self.path = usual_control_socket() if path is None else path
        self._timeout = timeout
        self._wait: Wait = wait_readable
        self._channel: BlockingChannel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, which the extension may have closed."""
        return self._channel is not None

    def wait_by(self, wait: Wait) -> None:
        """Use this function for every wait; it may raise to end the command."""
        self._wait = wait
        if self._channel is not None:
            self._channel.wait = wait

    def close(self) -> None:
        """Disconnect.  Idempotent."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def open(self) -> None:
        """Connect.  Raises `ExtensionUnreachableError` with advice for each reason."""
        if len(os.fsencode(self.path)) > MAX_SOCKET_PATH:
            raise UsageError(
                f"{self.path}: longer than the {MAX_SOCKET_PATH} bytes that a Unix socket path can have",
                code="bad-path",
                advice="choose a shorter path with --socket",
            )
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(self._timeout)
            connection.connect(self.path)
            self._channel = BlockingChannel(connection, f"cli {os.getpid()}", PEOPLE)
            self._channel.wait = self._wait
        except OSError as error:
            connection.close()
            raise self._unreachable(error) from error
        except IPCError as error:
            connection.close()
            raise self._broken(error, self._timeout) from error

    def request(
        self, command: Command, parameters: Message, result: type[Result], *, timeout: float | None = None
    ) -> Result:
        """The extension's answer to `command`, within `timeout` seconds if given.

        Raises the `UsbipdError` in the answer, `ExtensionUnreachableError` if there is none.
        """
        assert self._channel is not None, "open() comes first"
        patience = self._timeout if timeout is None else timeout
        try:
            return self._channel.request(command, parameters, result, timeout=patience)
        except IPCError as error:
            raise self._broken(self._reason_of(error), patience) from error

    def wait_for_events(self, seconds: float) -> bool:
        """Whether an event arrives within `seconds`; returns as soon as one does.

        Several events count as one.  Raises `ExtensionUnreachableError` if the connection is lost.
        """
        assert self._channel is not None, "open() comes first"
        patience, notified = seconds, False
        try:
            while (item := self._channel.receive(patience)) is not None:
                if not isinstance(item, Event):
                    raise IPCError("unexpected message", code="bad-message")
                patience, notified = 0.0, True
        except IPCError as error:
            if error.code == "timeout":
                return notified
            raise self._broken(error, seconds) from error
        raise ExtensionUnreachableError("it has closed the connection", code="gone")

    def _reason_of(self, error: IPCError) -> IPCError:
        """The error in the last message, such as a hello of another version; else `error`."""
        if error.code == "gone" and self._channel is not None:
            try:
                self._channel.receive(self._timeout)
            except IPCError as reason:
                return reason
        return error

    def _unreachable(self, error: OSError) -> ExtensionUnreachableError:
        if _is_no_socket(self.path):
            return ExtensionUnreachableError(
                f"{self.path} is not a socket",
                code="unreachable",
                advice="name the control socket of the extension with --socket, or omit that option",
            )
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return ExtensionUnreachableError(
                f"the extension is not running: nothing answers on {self.path}",
                code="not-running",
                advice=_how_to_start(self.path),
            )
        if isinstance(error, PermissionError):
            return ExtensionUnreachableError(
                f"you have no permission to use {self.path}",
                code="no-permission",
                advice="run the command with sudo, or as the user who started the extension",
            )
        if isinstance(error, BlockingIOError | TimeoutError):
            return ExtensionUnreachableError(
                f"the extension is busy: too many connections are waiting on {self.path}",
                code="busy",
                advice="try again; if that does not help, check its log and restart it",
            )
        return ExtensionUnreachableError(
            f"cannot connect to the extension on {self.path}: {error.strerror or error}",
            code="unreachable",
            advice="is this the extension's control socket?  --socket names another one",
        )

    def _broken(self, error: IPCError, patience: float) -> ExtensionUnreachableError:
        if error.code == "version":
            return ExtensionUnreachableError(
                f"the extension is of another version than this command: {error.message}",
                code="version",
                advice="restart the extension after an update, or use the command that came with it",
            )
        if error.code == "timeout":
            return ExtensionUnreachableError(
                f"the extension did not answer within {patience:g} s",
                code="timeout",
                advice="check its log; if that shows no reason, restart it",
            )
        if error.code == "gone":
            return ExtensionUnreachableError(
                f"the extension closed the connection before it answered ({error.message})",
                code="gone",
                advice="it may be stopping or restarting: try again, then check its log",
            )
        return ExtensionUnreachableError(
            f"the program listening on {self.path} is not a compatible usbipd daemon: {error.message}",
            code=error.code,
            advice="is this the extension's control socket?  --socket names another one",
        )


def _is_no_socket(path: str) -> bool:
    """Whether the path names something other than a socket; False if unknown."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 - pathlib is slow to import
    except OSError:
        return False


def start_command(socket_path: str) -> str:
    """The command that starts an extension with this control socket, in backquotes."""
    from usbipd import paths  # here: not needed if the extension answers

    if socket_path == system_control_socket():
        job = paths.launch_daemon()
        if job is not None and job.exists():
            return f"`sudo launchctl kickstart system/{job.stem}`"
        if paths.systemd_unit() is not None:
            return "`sudo systemctl start usbipd`"
    return "`sudo usbipd-ext --run`"


def _how_to_start(socket_path: str) -> str:
    """What to do if nothing answers on this socket."""
    from usbipd import paths  # here as above

    job = paths.launch_daemon()
    if job is None or not job.exists() or socket_path != system_control_socket():
        return f"start it with {start_command(socket_path)}, or name its socket with --socket"
    from usbipd.launchd import steps_to_load  # on a Mac that has a problem

    steps = "".join(f"\n  {number}. {step}" for number, step in enumerate(steps_to_load(job), 1))
    return f"its launchd job may be disabled: `usbipd doctor` checks it.  If it is:{steps}"
