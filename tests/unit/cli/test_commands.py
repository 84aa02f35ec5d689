"""Whole commands: what goes to stdout, what to stderr, and the exit code.

Those whose streams are the point run as processes, the others here.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs import EXECUTABLE, program
from tests.unit.cli.conftest import drain
from tests.unit.cli.reports import make_binding, make_device, make_entry, make_status
from usbipd import __version__
from usbipd.__main__ import load_daemon
from usbipd.cli import bind, ext
from usbipd.cli import main as usbipd
from usbipd.errors import UsbipdError
from usbipd.extension import claimer
from usbipd.ipc.control_messages import (
    BindingInfo,
    BindParameters,
    BindResult,
    CheckResult,
    CheckState,
    DetachParameters,
    DetachResult,
    DeviceState,
    HardwareId,
    HealthResult,
    HistoryParameters,
    HistoryResult,
    ListResult,
    ReleaseParameters,
    ReleaseResult,
    StatusResult,
    UnbindParameters,
    UnbindResult,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command

Extension = Callable[..., AbstractContextManager[None]]

USBIPD = program("usbipd")
USBIPD_EXT = program("usbipd-ext")


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("usbipd", ARGUMENT...)` in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(name: str, *arguments: str) -> Done:
        code = usbipd.main(arguments) if name == "usbipd" else ext.main(arguments, load_daemon)
        return Done(code, *capsys.readouterr())

    return call


def spawn(command: list[str], stdout: object = subprocess.PIPE, **variables: str) -> Done:
    """Run `command` as a process with its output in `stdout`."""
    done = subprocess.run(
        command,
        check=False,
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "COLUMNS": "80"} | variables,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def answer(request: Request) -> Message | UsbipdError:
    """An extension with two devices, of which 1-1 cannot be had."""
    devices = [make_device("1-1", product="Maus 日本"), make_device("3-1")]
    match request.parameters:
        case BindParameters(busid="1-1"):
            return UsbipdError("1-1 is mounted on /mnt", code="mounted", advice="unmount /mnt first")
        case BindParameters(busid=None, allow=allow):
            return BindResult(binding=make_binding(serial="4C53", allow=allow), devices=[])
        case BindParameters(allow=allow):
            return BindResult(binding=make_binding(busid="3-1", allow=allow), devices=devices[1:])
        case DetachParameters(busid="3-1"):
            return DetachResult(client="192.0.2.7:51234")
        case DetachParameters(busid=busid):
            return UsbipdError(f"{busid} is not attached", code="not-attached")
    match request.command:
        case Command.LIST:
            return ListResult(devices=devices, bindings=[make_binding(devices=["3-1"])])
        case Command.HISTORY:
            assert isinstance(request.parameters, HistoryParameters)
            before = request.parameters.before or 4
            return HistoryResult(
                entries=[make_entry(number) for number in (3, 2, 1) if number < before][
                    : request.parameters.limit
                ]
            )
        case Command.HEALTH:
            return HealthResult(checks=[CheckResult(name="store", state=CheckState.WARNING, message="old")])
    return make_status(devices)


def test_list(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "list", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["BUSID", "1-1", "3-1"]


def test_list_of_nothing(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(lambda _request: ListResult(devices=[], bindings=[])):
        done = run("usbipd", "list", "--socket", str(socket_path))
    assert (done.code, done.stdout) == (0, "")
    assert "No shareable USB device" in done.stderr


def test_bind(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "--socket", str(socket_path), "bind", "--busid", "3-1")
    assert (done.code, done.stdout, done.stderr) == (0, "", "3-1 is shared: SanDisk Ultra\n")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--busid", "3-1", "--allow", "::1"], "3-1 is shared with ::1 only: SanDisk Ultra\n"),
        (
            ["--hardware-id", "0781:5581", "--serial", "4C53"],
            "0781:5581 with serial number 4C53 (Ultra) will be shared when it is plugged in.\n",
        ),
    ],
)
def test_what_was_bound(
    run: Run, extension: Extension, socket_path: Path, argv: list[str], said: str
) -> None:
    with extension(answer):
        done = run("usbipd", "bind", *argv, "--socket", str(socket_path))
    assert (done.code, done.stdout, done.stderr) == (0, "", said)


def test_what_bind_asks_for(run: Run, extension: Extension, socket_path: Path) -> None:
    asked: list[Message] = []

    def record(request: Request) -> Message | UsbipdError:
        asked.append(request.parameters)
        return answer(request)

    at = ["--socket", str(socket_path)]
    with extension(record):
        run("usbipd", "bind", "--busid", "3-1", "--force", *at)
    with extension(record):
        allow = ["--allow", "::1", "--allow", "10.0.0.0/8"]
        run("usbipd", "bind", "--hardware-id", "0781:00ff", "--serial", "S", *allow, *at)
    assert asked == [
        BindParameters(busid="3-1", force=True),
        BindParameters(
            hardware=HardwareId(vendor_id=0x0781, product_id=0xFF, serial="S"), allow=["::1", "10.0.0.0/8"]
        ),
    ]


def test_bind_json(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "3-1", "--json", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["binding"]["busid"] == "3-1"
    assert [device["busid"] for device in document["devices"]] == ["3-1"]


def test_bind_waits_longer_than_a_claim_may_take(
    run: Run, extension: Extension, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would say that nobody answers, and the device would be bound a moment later."""
    assert bind.CLAIM_TIMEOUT > claimer.CLAIM_TIMEOUT
    monkeypatch.setattr(bind, "CLAIM_TIMEOUT", 0.1)
    with extension(talk=drain):
        done = run("usbipd", "bind", "--busid", "3-1", "--socket", str(socket_path))
    assert done.code == 3
    assert "did not answer within 0.1 s" in done.stderr


def test_list_waits_as_long_as_it_is_told(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(talk=drain):
        done = run("usbipd", "list", "--timeout", "0.1", "--socket", str(socket_path))
    assert done.code == 3
    assert "did not answer within 0.1 s" in done.stderr


def test_a_refused_bind(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "1-1", "--socket", str(socket_path))
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr == "usbipd: 1-1 is mounted on /mnt\nhint: unmount /mnt first\n"


def test_a_refused_bind_in_json(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "--busid", "1-1", "--json", "--socket", str(socket_path))
    assert done.code == 1
    assert json.loads(done.stdout) == {
        "format": 1,
        "error": {"code": "mounted", "message": "1-1 is mounted on /mnt", "advice": "unmount /mnt first"},
    }


PORT = make_binding(busid="3-1", devices=["3-1"])
KIND = make_binding(devices=["3-1", "3-2"])
ABSENT = make_binding(serial="4C53", product=None)


@pytest.mark.parametrize(
    ("gone", "busids", "left", "said"),
    [
        (
            [PORT],
            ["3-1"],
            [],
            "no longer bound: 0781:5581 at 3-1 (Ultra)\nno longer shared: 3-1\n",
        ),
        (
            [PORT],
            [],
            [KIND],
            "no longer bound: 0781:5581 at 3-1 (Ultra)\n"
            "3-1 is still shared: it is also bound as 0781:5581 (Ultra)\n",
        ),
        (
            [KIND],
            ["3-2"],
            [PORT],
            "no longer bound: 0781:5581 (Ultra)\nno longer shared: 3-2\n"
            "3-1 is still shared: it is also bound as 0781:5581 at 3-1 (Ultra)\n",
        ),
        (  # bound again by another command before the list is fetched
            [KIND],
            ["3-2"],
            [KIND],
            "no longer bound: 0781:5581 (Ultra)\nno longer shared: 3-2\n"
            "3-1 is still shared: it is also bound as 0781:5581 (Ultra)\n",
        ),
        ([PORT], [], [], "no longer bound: 0781:5581 at 3-1 (Ultra)\n"),  # its claim had failed
        ([ABSENT], [], [KIND], "no longer bound: 0781:5581 with serial number 4C53\n"),
        ([], [], [], "Nothing was bound.\n"),
    ],
)
def test_unbind(
    run: Run,
    extension: Extension,
    socket_path: Path,
    gone: list[BindingInfo],
    busids: list[str],
    left: list[BindingInfo],
    said: str,
) -> None:
    def unbound(request: Request) -> Message:
        if request.command is Command.LIST:
            return ListResult(devices=[], bindings=left)
        assert request.parameters == UnbindParameters(busid="3-1")
        return UnbindResult(bindings=gone, busids=busids)

    with extension(unbound):
        done = run("usbipd", "unbind", "--busid", "3-1", "--socket", str(socket_path))
    assert (done.code, done.stdout, done.stderr) == (0, "", said)


@pytest.mark.parametrize(
    ("argv", "parameters"),
    [
        (["--all"], UnbindParameters()),
        (
            ["--hardware-id", "0781:5581"],
            UnbindParameters(hardware=HardwareId(vendor_id=1921, product_id=21889)),
        ),
        (
            ["--hardware-id", "0781:5581", "--serial", "S"],
            UnbindParameters(hardware=HardwareId(vendor_id=1921, product_id=21889, serial="S")),
        ),
    ],
)
def test_what_unbind_asks_for(
    run: Run, extension: Extension, socket_path: Path, argv: list[str], parameters: UnbindParameters
) -> None:
    def unbound(request: Request) -> Message:
        assert request.parameters == parameters
        return UnbindResult(bindings=[], busids=[])

    with extension(unbound):
        assert run("usbipd", "unbind", *argv, "--socket", str(socket_path)).code == 0


def test_unbind_json(run: Run, extension: Extension, socket_path: Path) -> None:
    def unbound(request: Request) -> Message:
        if request.command is Command.LIST:
            return ListResult(devices=[], bindings=[PORT])
        return UnbindResult(bindings=[KIND], busids=["3-2"])

    with extension(unbound):
        done = run("usbipd", "unbind", "--hardware-id", "0781:5581", "--json", "--socket", str(socket_path))
    document = json.loads(done.stdout)
    assert (document["busids"], document["still_shared"]) == (["3-2"], ["3-1"])
    assert document["bindings"][0]["devices"] == ["3-1", "3-2"]


def test_detach(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "detach", "--busid", "3-1", "--socket", str(socket_path))
    assert (done.code, done.stdout) == (0, "")
    assert done.stderr == "3-1: disconnected 192.0.2.7:51234; the device is still shared\n"


def test_detach_json(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "detach", "--busid", "3-1", "--json", "--socket", str(socket_path))
    assert json.loads(done.stdout) == {"format": 1, "busid": "3-1", "client": "192.0.2.7:51234"}


def test_detach_of_what_nobody_uses(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "detach", "--busid", "1-1", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (1, "usbipd: 1-1 is not attached\n")


@pytest.mark.parametrize(
    ("drivers", "printed"),
    [
        (["usbhid", "snd-usb-audio"], "3-1: released to usbhid, snd-usb-audio\n"),
        ([], "3-1: released; no driver has claimed it\n"),
    ],
)
def test_release(run: Run, extension: Extension, socket_path: Path, drivers: list[str], printed: str) -> None:
    def released(request: Request) -> Message:
        assert (request.command, request.parameters) == (
            Command.RELEASE_DEVICE,
            ReleaseParameters(busid="3-1"),
        )
        return ReleaseResult(drivers=drivers)

    with extension(released):
        done = run("usbipd", "release", "3-1", "--socket", str(socket_path))
    assert (done.code, done.stdout, done.stderr) == (0, "", printed)
    with extension(released):
        done = run("usbipd", "release", "3-1", "--json", "--socket", str(socket_path))
    assert json.loads(done.stdout) == {"format": 1, "busid": "3-1", "drivers": drivers}


def test_release_of_what_is_shared(run: Run, extension: Extension, socket_path: Path) -> None:
    refused = UsbipdError("3-1 is shared", code="shared", advice="`usbipd unbind 3-1` releases it")
    with extension(lambda _request: refused):
        done = run("usbipd", "release", "3-1", "--socket", str(socket_path))
    assert done.code == 1
    assert "usbipd: 3-1 is shared\n" in done.stderr
    assert "unbind 3-1" in done.stderr


def test_people_read_the_newest_last_and_programs_first(
    run: Run, extension: Extension, socket_path: Path, utc: None
) -> None:
    with extension(answer):
        done = run("usbipd", "history", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    assert [line[17:19] for line in done.stdout.splitlines()[1:]] == ["21", "22", "23"]
    with extension(answer):
        done = run("usbipd", "history", "--limit", "2", "--json", "--socket", str(socket_path))
    assert [entry["id"] for entry in json.loads(done.stdout)["entries"]] == [3, 2]


def test_no_history(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(lambda _request: HistoryResult(entries=[])):
        done = run("usbipd", "history", "--socket", str(socket_path))
    assert (done.code, done.stdout, done.stderr) == (0, "", "The history is empty.\n")


def test_status_with_and_without_processes(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        short = run("usbipd", "status", "--socket", str(socket_path))
    with extension(answer):
        long = run("usbipd-ext", "--status", "--socket", str(socket_path))
    assert short.code == long.code == 0
    assert long.stdout.startswith(short.stdout)
    assert "PROCESS" in long.stdout.removeprefix(short.stdout)


def test_the_status_of_one_device(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "status", "maus", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (0, "")
    assert "\n1-1 " in done.stdout
    assert "\n3-1 " not in done.stdout
    with extension(answer):
        done = run("usbipd", "status", "3-1", "--json", "--socket", str(socket_path))
    assert [device["busid"] for device in json.loads(done.stdout)["status"]["devices"]] == ["3-1"]


def test_the_status_of_a_device_that_is_not_shared(run: Run, extension: Extension, socket_path: Path) -> None:
    free = make_device("1-1", state=DeviceState.NOT_SHARED)
    with extension(lambda _request: make_status([free, make_device("3-1")])):
        done = run("usbipd", "status", "1-1", "--socket", str(socket_path))
    assert done.stdout.endswith("\n\n1-1 is not shared.\n")


def test_both_statuses_are_one_document(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        one = run("usbipd", "status", "--json", "--socket", str(socket_path))
    with extension(answer):
        other = run("usbipd-ext", "--status", "--json", "--socket", str(socket_path))
    assert one.stdout == other.stdout
    assert json.loads(one.stdout)["status"].keys() == set(StatusResult.__struct_fields__)


def test_both_examinations_are_one(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        one = run("usbipd", "doctor", "--json", "--socket", str(socket_path))
    with extension(answer):
        other = run("usbipd-ext", "--health", "--json", "--socket", str(socket_path))
    assert one == other
    assert (one.code, one.stderr) == (0, "")
    checks = {check["name"]: check["state"] for check in json.loads(one.stdout)["checks"]}
    assert checks["store"] == "warning"


@pytest.mark.parametrize("command", [["usbipd", "doctor"], ["usbipd-ext", "--health"]])
def test_an_extension_that_does_not_run_is_a_finding(run: Run, command: list[str], socket_path: Path) -> None:
    done = run(*command, "--json", "--socket", str(socket_path))
    assert (done.code, done.stderr) == (1, "")
    first = json.loads(done.stdout)["checks"][0]
    assert (first["name"], first["state"]) == ("extension", "failed")
    assert first["steps"]
    done = run(*command, "--socket", str(socket_path))
    assert done.code == 1
    assert "         1. Start it: `sudo usbipd-ext --run`.\n" in done.stdout


def test_a_path_that_no_socket_can_have_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    done = run("usbipd", "doctor", "--socket", str(tmp_path / ("x" * 104)))
    assert (done.code, done.stdout) == (2, "")


@pytest.mark.parametrize("command", [["usbipd", "status"], ["usbipd-ext", "--status"]])
def test_no_extension(run: Run, command: list[str], tmp_path: Path) -> None:
    done = run(*command, "--json", "--socket", str(tmp_path / "none"))
    assert done.code == 3
    assert "not running" in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "not-running"


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext"])
def test_wrong_usage_is_two_lines_and_2(run: Run, name: str) -> None:
    done = run(name, "--frob")
    assert (done.code, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{name}: ")
    assert second.startswith("hint: ")
    assert f"{name} --help" in second


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--\udcff"],
        ["list", "--socket", "/nonexistent/\udcff"],
        ["list", "--remote", "\udcff"],
        ["bind", "\udcff"],
        ["\udcff"],
        ["list", "--socket", "/nonexistent/\x1b[2J"],
    ],
)
def test_an_error_quotes_any_bytes_readably(run: Run, arguments: list[str]) -> None:
    done = run("usbipd", *arguments, "--json")
    assert done.code != 0
    quoted = json.loads(done.stdout)["error"]["message"]
    assert quoted.isprintable()
    assert all(line.isprintable() for line in done.stderr.split("\n"))
    assert quoted in done.stderr


def test_each_failure_names_its_device_once(run: Run, extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = run("usbipd", "bind", "a\\b", "it's", "--socket", str(socket_path))
    assert done.code == 1
    problems = [line for line in done.stderr.splitlines() if line.startswith("usbipd: ")]
    assert problems == [r"usbipd: no device matches 'a\\b'", '''usbipd: no device matches "it's"''']


def test_an_answer_that_is_no_text_is_none_of_the_numbers(
    run: Run, extension: Extension, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard = io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8")
    monkeypatch.setattr("sys.stdin", keyboard)
    for stream in (keyboard, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with extension(answer):
        done = run("usbipd", "unbind", "--socket", str(socket_path))
    assert done.code == 2
    assert "is not one of the choices" in done.stderr


def test_the_command_alone_shows_the_first_share(run: Run) -> None:
    """On stderr and as wrong usage, as docker does: a script that forgot the command must not go on."""
    done = run("usbipd")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == run("usbipd", "help").stdout
    for command in ("usbipd list", "sudo usbipd bind 1-1", "sudo usbip attach -r HOST -b 1-1"):
        assert f"      {command}\n" in done.stderr


@pytest.mark.parametrize("argv", [["help"], ["--help"], ["-h"], ["help", "bind"], ["bind", "-h"]])
def test_help_is_data(run: Run, argv: list[str]) -> None:
    done = run("usbipd", *argv)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: usbipd ")


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext"])
def test_version_and_help(run: Run, name: str) -> None:
    assert run(name, "--version") == run(name, "-V") == (0, f"{name} {__version__}\n", "")
    assert run(name, "--help").stdout.startswith(f"usage: {name} ")


@pytest.mark.skipif(EXECUTABLE is not None, reason="the executable writes UTF-8 whatever the locale is")
def test_a_terminal_without_the_characters(extension: Extension, socket_path: Path) -> None:
    with extension(answer):
        done = spawn([*USBIPD, "list", "--socket", str(socket_path)], PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "Maus ??" in done.stdout


def test_a_reader_that_leaves_early_is_no_error(extension: Extension, socket_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:  # noqa: PTH123 - a descriptor
        with extension(answer):
            listed = spawn([*USBIPD, "list", "--socket", str(socket_path)], pipe)
        helped = spawn([*USBIPD, "list", "--help"], pipe)
    assert (listed.code, listed.stderr) == (141, "")
    assert (helped.code, helped.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["status", "--json", "--socket", "/nonexistent"]])
def test_a_full_disk_is_an_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = spawn([*USBIPD, *arguments], full)
    assert done.code != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("usbipd: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_error_where_nothing_is_written(extension: Extension, socket_path: Path) -> None:
    with extension(answer), Path("/dev/full").open("w") as full:
        command = [*USBIPD, "bind", "--busid", "3-1", "--socket", str(socket_path)]
        done = spawn(command, full, PYTHONUNBUFFERED="1")  # then also an empty text is written
    assert (done.code, done.stderr.partition(":")[0]) == (0, "3-1 is shared")


def test_stdout_may_be_closed(extension: Extension, socket_path: Path) -> None:
    script = ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *USBIPD]
    with extension(answer):
        done = spawn([*script, "list", "--socket", str(socket_path)])
    assert (done.code, done.stderr) == (0, "")


def test_asking_for_the_status_is_light(extension: Extension, socket_path: Path) -> None:
    """What `usbipd-ext --status` imports decides how long a person waits for it."""
    script = (
        "import sys; from usbipd.cli.ext import main; code = main(sys.argv[1:], sys.exit)\n"
        "heavy = {'asyncio', 'ctypes', 'usb1', 'logging', 'tomllib', 'sqlite3', 'subprocess',\n"
        "    'usbipd.addresses', 'usbipd.config', 'usbipd.privileges', 'usbipd.usb.discovery',\n"
        "    'usbipd.extension.process', 'usbipd.cli.offline_checks', 'usbipd.cli.watch'}\n"
        "sys.exit(code or repr(heavy & sys.modules.keys()))"
    )
    with extension(answer):
        done = spawn([sys.executable, "-c", script, "--status", "--socket", str(socket_path)])
    assert done.stderr == "set()\n"
