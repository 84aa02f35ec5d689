"""The checks of `usbipd doctor` that run in the caller's process.

If the extension answers: its own checks, and whether version and permissions fit this command.  If not: why
it may not be running, and what would keep it from starting.
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

_ANOTHER_PLACE: Final = "Start it with another socket path: `sudo usbipd-ext --run --socket PATH`."
TIMEOUT: Final = 2.0
"""Seconds to wait for a connection to the port."""


def examine(extension: ControlConnection) -> list[CheckResult]:
    """All checks that can run now.  `extension` is closed before, and may be open afterwards."""
    try:
        extension.open()
        health = extension.request(Command.HEALTH, Nothing(), HealthResult)
        return [*_reports(_check_standing(extension)), *health.checks]
    except UsageError:
        raise
    except ExtensionUnreachableError as error:
        found = examine_host(Path(extension.path))
        return _reports({"extension": unreachable(error, extension.path), **found})
    except UsbipdError as error:  # it runs, and reports why it cannot
        return _reports({"extension": failed(error.message, *steps_of(error))})


def _reports(found: Mapping[str, Finding]) -> list[CheckResult]:
    """Each under its name."""
    return [check_result(name, finding) for name, finding in found.items()]


def _check_standing(extension: ControlConnection) -> dict[str, Finding]:
    """Whether the extension and this command fit.  Raises `ExtensionUnreachableError`."""
    try:
        status = extension.request(Command.STATUS, Nothing(), StatusResult)
    except ExtensionUnreachableError:
        raise
    except UsbipdError as error:
        problem = f"the daemon is running but could not report its status: {error.message}"
        return {"extension": failed(problem, *steps_of(error))}
    return {"extension": check_extension(status), "permission": check_permission(status)}


def examine_host(control_socket: Path) -> dict[str, Finding]:
    """What an extension of this user needs to start."""
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
    """Whether it has the version of this command."""
    if status.version != __version__:
        return warning(
            f"the daemon has version {status.version} (pid {status.pid}), this command {__version__}",
            "Restart the daemon.",
            "If there are two installations, use the command of the running one, or remove one of them.",
        )
    return ok(
        f"usbipd {status.version} runs as {status.user}, pid {status.pid}, "
        f"since {format_time(status.start_time)}",
    )


def unreachable(error: ExtensionUnreachableError, control_socket: str) -> Finding:
    """The check of an extension that does not answer."""
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
        return ok(f"you are {user}: you can bind, unbind, detach and release")
    name = privileges.ADMIN_GROUP
    if group is not None and group in {os.getegid(), *os.getgroups()}:
        return ok(f"you are in the group {name}: you can bind, unbind, detach and release")
    steps = ["Put sudo before the command."]
    if group is None:
        steps.append(f"Or have an administrator create the group {name} and add you to it.")
    else:
        steps.append(f"Or have an administrator add {user} to the group {name}.")
    steps.append("Log out and in again: groups take effect at login.")
    return warning(f"{user} has read-only access", *steps)


def check_runtime(control_socket: Path) -> Finding:
    """Whether an extension accepts the directory of the control socket."""
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
            f"{danger}: the extension refuses to put its socket there",
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
    return ok(f"{directory} is usable")


def check_state() -> Finding:
    """Whether the stored bindings can be read."""
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
            f"See who owns it: `ls -ld '{store.parent}' '{store}'`.",
            "Change its owner to the user who starts the extension, or move it aside: then nothing is bound.",
        )
    return ok(f"{store} is readable")


def check_port(host: str, port: int) -> Finding:
    """Whether anything listens where the extension would."""
    try:
        socket.create_connection((host, port), TIMEOUT).close()
    except TimeoutError:  # a program listens, and is stopped or busy: its queue is full
        pass
    except OSError:  # refused, as expected
        return ok(f"nothing listens on {host}:{port}")
    return failed(
        f"something listens on {host}:{port}, so the extension cannot: "
        "the kernel's usbipd, or an extension that this command does not reach",
        f"See what it is: `sudo lsof -nP -iTCP:{port} -sTCP:LISTEN`.",
        "Stop it.",
        "Or choose another port: `sudo usbipd-ext --run --listen 127.0.0.1:3241`, "
        "and `usbip --tcp-port 3241` on the clients.",
    )


def check_launchd(job: Path, launchctl: Path = launchd.LAUNCHCTL) -> Finding:
    """Whether launchd has the job, whose extension does not answer."""
    found = findings.check_launchd(job, launchctl)
    if found.state is not CheckState.OK:
        return found
    return failed(
        f"{found.message}, but the extension does not answer",
        f"Start it again: `sudo launchctl kickstart -k system/{job.stem}`.",
        "If it exits again, check its log.",
    )
