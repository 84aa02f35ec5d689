"""usbipd's commands without starting a Python, which takes seconds here.  Runs in the guest."""

import contextlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import PATIENCE, wait_for
from usbipd.cli import main as usbipd
from usbipd.errors import UsbipdError

Document = dict[str, Any]


@dataclass(frozen=True)
class User:
    """A user that runs commands."""

    name: str
    uid: int
    gid: int
    groups: Sequence[int] = ()


ROOT: Final = User("root", 0, 0)


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Document:
        """The output under `--json`."""
        return cast("Document", json.loads(self.stdout))

    @property
    def error(self) -> str | None:
        """The error code under `--json`; None if it succeeded."""
        error = self.document.get("error")
        return None if error is None else str(error["code"])


def ask(*arguments: str) -> Document:
    """The output of `usbipd ARGUMENTS --json`.  Raises its `UsbipdError`."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        usbipd.run([*arguments, "--json"])
    return cast("Document", json.loads(output.getvalue()))


def try_ask(*arguments: str) -> Document | None:
    """As `ask`; None while no extension answers."""
    try:
        return ask(*arguments)
    except UsbipdError as error:
        if error.exit_code != 3:  # 3: no extension answers
            raise
        return None


def wait_for_state(busid: str, state: str, patience: float = PATIENCE) -> Document:
    """The device as `usbipd list` shows it, once it is in that state.  Raises `StepError`."""
    seen: Document | None = None

    def find() -> Document | None:
        nonlocal seen
        seen = listed(busid)
        return seen if seen is not None and seen["state"] == state else None

    try:
        return wait_for(f"{busid} to be {state}", find, patience)
    except StepError as error:
        raise StepError(f"{error}; it is {seen}") from None


def listed(busid: str) -> Document | None:
    """The device as `usbipd list` shows it; None if it is not listed, or no extension answers."""
    document = try_ask("list")
    devices = [] if document is None else document["devices"]
    return next((device for device in devices if device["busid"] == busid), None)


def status_of(busid: str) -> Document:
    """The device as `usbipd status` shows it."""
    devices = ask("status")["status"]["devices"]
    return cast("Document", next(device for device in devices if device["busid"] == busid))


def call(*arguments: str, user: User = ROOT) -> Outcome:
    """`usbipd ARGUMENTS` in a process of `user`: the kernel reports the user to the extension."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 70  # sysexits.h, EX_SOFTWARE
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os.setgroups(user.groups)
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
                code = usbipd.main(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        _pid, status = os.waitpid(pid, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    outcome = Outcome(os.waitstatus_to_exitcode(status), *texts)
    print(f"{user.name}$ usbipd {' '.join(arguments)}\n{outcome.stdout}{outcome.stderr}", end="", flush=True)
    return outcome


def check_doctor() -> None:
    """Raises `StepError` unless `usbipd doctor` finds nothing wrong."""
    outcome = call("doctor", "--json")
    failed = [each for each in outcome.document["checks"] if each["state"] == "failed"]
    check(outcome.code == 0 and not failed, f"doctor exits with {outcome.code}: {failed}")
