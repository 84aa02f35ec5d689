"""Golden texts of tables: one for each command, width and use of colour.

The escape character is written `\\e`, as in printf(1).
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from tests.unit.cli.conftest import scripted_extension
from tests.unit.cli.reports import START, make_binding, make_counters, make_device, make_entry, make_status
from usbipd.cli import main as usbipd
from usbipd.ipc.control_messages import (
    CheckResult,
    CheckState,
    DeviceInfo,
    DeviceState,
    HistoryEvent,
    HistoryParameters,
    HistoryResult,
    Latency,
    ListResult,
    LoggedError,
    Rate,
    StatusResult,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command

NOW: Final = START + 3600.0

CASES: Final = [
    (*words, width, colour)
    for words in (("status",), ("history",), ("doctor",), ("doctor", "--problems"), ("list",))
    for width in (80, 120)
    for colour in ("never", "always")
]
"""The words of the command, the width of the terminal, and the value of --color."""


def file_name(*case: object) -> str:
    *words, width, colour = case
    ending = "-colour" if colour == "always" else ""
    return "-".join(str(word).removeprefix("--") for word in words) + f"-{width}{ending}.txt"


def devices() -> list[DeviceInfo]:
    """Fifteen shared devices, and one that is not."""
    names = ("Ultra Fit", "FT232R USB UART", "USB Receiver", "HD Pro Webcam C920", "ScanSnap iX500")
    shared = [
        make_device(
            f"{1 + number // 8}-{1 + number % 8}",
            product=names[number % len(names)],
            speed=("high", "full", "full", "high", "super")[number % 5],
            claim_method="libusb",
            claim_time=START - number * 20000,
            counters=make_counters(errors=number),
            rate=Rate(urbs=0.0, bytes_in=0.0, bytes_out=0.0),
        )
        for number in range(11)
    ]
    attached = [
        make_device(
            f"3-{number}",
            product=("Extreme Pro", "記憶装置 日本語の名前")[number - 1],
            state=DeviceState.ATTACHED,
            client=("192.168.100.7:51234", "[2001:db8::7]:40022")[number - 1],
            drivers=[],
            claim_method="libusb",
            claim_time=START,
            attach_time=NOW - (60 if number == 1 else 86400),
            counters=make_counters(urbs=1_234_567, bytes_in=5 << 30, bytes_out=700 << 20),
            rate=Rate(urbs=900.0, bytes_in=31.4 * 2**20, bytes_out=817.0),
            latency=Latency(p50_us=128, p99_us=1024),
        )
        for number in (1, 2)
    ]
    failed = [
        make_device("4-1", product="Mouse", state=DeviceState.FAILED, error="usbhid cannot be detached"),
        make_device(
            "4-2.1",
            product="Backup",
            state=DeviceState.FAILED,
            error="4-2.1 is mounted on /mnt",
            advice="unmount it, or use `usbipd bind --force`",
            next_try=NOW + 90,
        ),
    ]
    kept = make_device("5-1", product="Keyboard", state=DeviceState.NOT_SHARED, drivers=["usbhid"])
    return [*shared, *attached, *failed, kept]


def status() -> StatusResult:
    errors = [LoggedError(time=START, message="server[4712] ended with signal 9")]
    return make_status(devices(), error_count=1, last_errors=errors)


def checks() -> list[CheckResult]:
    bound = [
        CheckResult(name="bindings", state=CheckState.OK, message=f"0781:5581 at 1-{number}: shared")
        for number in range(1, 6)
    ]
    orphans = [
        CheckResult(
            name="drivers",
            state=CheckState.WARNING,
            message=f"{busid} has no driver: the worker that held it was killed before it could release it",
            steps=[f"Run `usbipd release {busid}`.", "If that changes nothing, plug it in again."],
        )
        for busid in ("2-1", "2-3.4")
    ]
    return [
        CheckResult(name="extension", state=CheckState.OK, message="usbipd 0.1.0 runs as root, pid 4711"),
        *orphans,
        CheckResult(
            name="network",
            state=CheckState.FAILED,
            message="127.0.0.1:3240 takes no connections: refused",
            steps=["Restart the daemon."],
        ),
        *bound,
    ]


def answer(request: Request) -> Message:
    match request.command:
        case Command.STATUS:
            return status()
        case Command.LIST:
            absent = make_binding(product="Ultra", allow=["192.0.2.0/24"])
            return ListResult(devices=devices(), bindings=[absent])
    assert isinstance(request.parameters, HistoryParameters)
    client = "192.168.100.7:51234"
    entries = [
        make_entry(1, HistoryEvent.CLAIMED),
        make_entry(2, HistoryEvent.ATTACHED, client=client),
        make_entry(
            299,
            HistoryEvent.DETACHED,
            client=client,
            seconds=297.0,
            bytes_in=1 << 30,
            bytes_out=817,
            reason="it left",
        ),
        make_entry(300, HistoryEvent.UNPLUGGED, seconds=400.0),
        make_entry(
            301, HistoryEvent.FAILED, busid="3-2.1", product="Mouse", reason="usbhid cannot be detached"
        ),
    ]
    before = request.parameters.before or 1000
    return HistoryResult(entries=[entry for entry in entries[::-1] if entry.id < before])


@contextmanager
def fixed_time() -> Iterator[None]:
    """Set the clock to one hour after the start, in UTC."""
    with mock.patch.dict(os.environ, {"TZ": "UTC0"}):
        time.tzset()
        now = time.localtime(NOW)
        local = time.localtime
        with mock.patch("time.localtime", lambda *moment: local(*moment) if moment else now):
            yield
    time.tzset()


def printed(*case: object) -> str:
    """The stdout of the command of this case."""
    *words, width, colour = (str(each) for each in case)
    output = io.StringIO()
    with (
        fixed_time(),
        tempfile.TemporaryDirectory() as directory,
        mock.patch.dict(os.environ, {"COLUMNS": width}),
        mock.patch("usbipd.cli.offline_checks.examine", return_value=checks()),
        redirect_stdout(output),
        redirect_stderr(io.StringIO()),
    ):
        path = Path(directory, "control.sock")
        arguments = [*words, "--color", colour, "--socket", str(path)]
        if words[0] == "doctor":
            usbipd.main(arguments)
        else:
            with scripted_extension(path, answer):
                usbipd.main(arguments)
    return output.getvalue().replace("\x1b", "\\e")


TEXTS: Final[Mapping[str, Callable[[], str]]] = {file_name(*case): partial(printed, *case) for case in CASES}
"""Each file and the function that returns its text."""
