"""What `usbipd doctor` finds out from the caller's process.

With an extension that answers: what it says of itself, and how this command stands to it.  Without one: why
it may not be running, and what would be in its way when it starts.
"""

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from usbipd import __version__, findings, launchd, paths, privileges
from usbipd.cli.connection import ControlConnection, start_command
from usbipd.cli.units import format_time
from usbipd.control_socket import has_listener
from usbipd.errors import ExtensionUnreachableError, UsageError, UsbipdError
from usbipd.findings import Finding, check_libusb, check_result, failed, ok, steps_of, warning
from usbipd.ipc.control_messages import CheckResult, CheckState, HealthResult, StatusResult
from usbipd.ipc.messages import Command, Nothing
from usbipd.protocol.constants import USBIP_PORT

_ANOTHER_PLACE: Final = "Start it with another place for its socket, with --socket."
TIMEOUT: Final = 2.0
"""Seconds that a look at the port may take."""


def examine(extension: ControlConnection) -> list[CheckResult]:
    """Every check that can be made now.  `extension` is not open yet; afterwards it may be."""
    try:
        extension.open()
        health = extension.request(Command.HEALTH, Nothing(), HealthResult)
        return [*_reports(_check_standing(extension)), *health.checks]
    except UsageError:
        raise
    except ExtensionUnreachableError as error:
        found = examine_host(Path(extension.path))
        return _reports({"extension": unreachable(error, extension.path), **found})
    except UsbipdError as error:  # it runs, and says why it cannot
        return _reports({"extension": failed(error.message, *steps_of(error))})


def _reports(found: Mapping[str, Finding]) -> list[CheckResult]:
    """Each under its name."""
    return [check_result(name, finding) for name, finding in found.items()]


def _check_standing(extension: ControlConnection) -> dict[str, Finding]:
    """How this command stands to the extension.  Raises `ExtensionUnreachableError`."""
    try:
        status = extension.request(Command.STATUS, Nothing(), StatusResult)
    except ExtensionUnreachableError:
        raise
    except UsbipdError as error:
        problem = f"the daemon is running but could not report its status: {error.message}"
        return {"extension": failed(problem, *steps_of(error))}
    return {"extension": check_extension(status), "permission": check_permission(status)}


def examine_host(control_socket: Path) -> dict[str, Finding]:
    """What an extension of this user needs when it starts."""
    found = {
        "runtime": check_runtime(control_socket),
        "libusb": check_libusb(),
        "store": check_state(),
        "port": check_port("127.0.0.1", USBIP_PORT),
    }
    if (job := paths.launch_daemon()) is not None:
        found["launchd"] = check_launchd(job)
    return found


def check_extension(status: StatusResult) -> Finding:
    """Whether it is the one that belongs to this command."""
    if status.version != __version__:
        return warning(
            f"version {status.version} runs (pid {status.pid}), and this command is of version {__version__}",
            "Restart the daemon.",
            "If there are two installations, use the command of the one that runs, or remove one of them.",
        )
    return ok(
        f"usbipd {status.version} runs as {status.user}, pid {status.pid}, "
        f"since {format_time(status.start_time)}",
    )


def unreachable(error: ExtensionUnreachableError, control_socket: str) -> Finding:
    """The check that nothing else can be asked for."""
    if error.code == "not-running":
        return failed(
            error.message,
            f"Start it: {start_command(control_socket)}.",
            "If it exits immediately, fix the problem named in its last line.",
            "If it runs with another control socket, name that: `usbipd doctor --socket PATH`.",
        )
    return failed(error.message, *steps_of(error))


def check_permission(status: StatusResult) -> Finding:
    """Whether the caller may bind; the extension decides it by the same rules (`ipc/roles.py`)."""
    uid, group = os.geteuid(), privileges.admin_group()
    user = privileges.user_name(uid)
    if uid == 0 or user == status.user:
        return ok(f"you are {user}: you may bind, unbind, detach and release")
    name = privileges.ADMIN_GROUP
    if group is not None and group in {os.getegid(), *os.getgroups()}:
        return ok(f"you are in the group {name}: you may bind, unbind, detach and release")
    steps = ["Put sudo before the command."]
    if group is None:
        steps.append(f"Or have an administrator make the group {name}, with you as a member.")
    else:
        steps.append(f"Or have an administrator make {user} a member of the group {name}.")
    steps.append("Log out and in again: groups count from the login on.")
    return warning(f"{user} has read-only access", *steps)


def check_runtime(control_socket: Path) -> Finding:
    """Whether the directory of the control socket is one that an extension takes."""
    directory = control_socket.parent
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return ok(f"{directory} does not exist yet: the extension creates it")
    except OSError as error:
        return failed(f"{directory}: {error.strerror}", f"Make it accessible: `ls -ld {directory}`.")
    if not stat.S_ISDIR(found.st_mode):
        return failed(f"{directory} is not a directory", _ANOTHER_PLACE)
    if (danger := paths.writable_by_others(directory, found, {0, os.geteuid()})) is not None:
        return failed(
            f"{danger}: no extension puts its socket there",
            f"See what is in it: `ls -la {directory}`.",
            _ANOTHER_PLACE,
        )
    if control_socket.is_socket():
        if has_listener(str(control_socket)):
            return failed(
                f"a program listens on {control_socket}, so the extension cannot",
                f"See which one: `sudo lsof '{control_socket}'`.",
                _ANOTHER_PLACE,
            )
        return ok(f"{control_socket} was left by an extension that was killed: the next one replaces it")
    return ok(f"{directory} is as it should be")


def check_state() -> Finding:
    """Whether what outlives the daemon can be read."""
    try:
        store = paths.state_directory() / paths.DATABASE
        with store.open("rb") as file:
            file.read(1)
    except UsbipdError as error:
        return failed(error.message, *steps_of(error))
    except FileNotFoundError:
        return ok(f"{store} does not exist yet: nothing has been bound")
    except OSError as error:
        return failed(
            f"{store}: {error.strerror}",
            f"See whose it is: `ls -ld '{store.parent}' '{store}'`.",
            "Give it back to the user who starts the extension, or move it aside: then nothing is bound.",
        )
    return ok(f"{store} is there")


def check_port(host: str, port: int) -> Finding:
    """Whether anything listens where the extension would."""
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except TimeoutError:  # a program listens, and is stopped or busy: its queue is full
        pass
    except OSError:  # refused, as it should be
        return ok(f"nothing listens on {host}:{port}")
    return failed(
        f"something listens on {host}:{port}, so the extension cannot: "
        "the kernel's usbipd, or an extension that this command does not reach",
        f"See what it is: `sudo lsof -nP -iTCP:{port} -sTCP:LISTEN`.",
        "End it.",
        "Or choose another port: `sudo usbipd-ext --run --listen 127.0.0.1:3241`, "
        "and `usbip --tcp-port 3241` on the clients.",
    )


def check_launchd(job: Path, launchctl: Path = launchd.LAUNCHCTL) -> Finding:
    """Whether launchd has the job, whose extension does not answer."""
    found = findings.check_launchd(job, launchctl)
    if found.state is not CheckState.OK:
        return found
    return failed(
        f"{found.message}, and yet the extension does not answer",
        f"Start it again: `sudo launchctl kickstart -k system/{job.stem}`.",
        "If it does not stay, look into its log.",
    )
