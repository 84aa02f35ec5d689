"""The text of `status`."""

import itertools

import pytest
from msgspec.structs import replace

from tests.unit.cli.reports import START, make_counters, make_device, make_status
from usbipd.cli.status import (
    ERRORS_SHOWN,
    format_confinement,
    format_daemon,
    format_devices,
    format_errors,
    format_silent,
    format_status,
)
from usbipd.ipc.control_messages import DeviceState, Latency, LoggedError, Rate


def test_unresponsive_processes() -> None:
    status = make_status([])
    server, worker = (process for process in status.processes if process.role != "extension")
    silent = [replace(server, silent_for=61.2), replace(worker, silent_for=3.0)]
    assert format_silent([server, worker], 80) == ""
    assert format_silent(silent, 60) == (
        "server[4712] has not answered for 1 min 1 s: see `usbipd\n"
        "  doctor`\n"
        "worker[4713] 3-1 has not answered for 3 s: see `usbipd\n"
        "  doctor`\n"
    )
    assert format_silent(silent, 80) in format_status(
        replace(status, processes=silent), 80, with_processes=False
    )


def test_incomplete_confinement() -> None:
    status = make_status([])
    assert format_confinement(status.processes, 80) == ""
    lacking = [replace(process, lacks="this Mac refuses the profile") for process in status.processes]
    line = "Not fully confined: this Mac refuses the profile: see `usbipd doctor`\n"
    assert format_confinement(lacking, 80) == line
    assert line in format_status(replace(status, processes=lacking), 80, with_processes=False)


def test_one_process_is_one() -> None:
    """As it is until the server has started."""
    status = make_status([])
    alone = replace(status, processes=status.processes[:1])
    assert "MiB in 1 process, 0 errors\n" in format_daemon(alone, 80)


def test_status_in_full(utc: None) -> None:
    devices = [
        make_device("1-1", state=DeviceState.NOT_SHARED),
        make_device(
            "3-1",
            state=DeviceState.ATTACHED,
            client="192.0.2.7:51234",
            drivers=[],
            claim_method="libusb",
            claim_time=START + 60,
            attach_time=START + 90,
            counters=make_counters(),
            rate=Rate(urbs=100.0, bytes_in=1.5 * 2**20, bytes_out=0.0),
            latency=Latency(p50_us=128, p99_us=1024),
        ),
        make_device("3-2", speed="full", claim_method="libusb", claim_time=START, counters=make_counters()),
        make_device(
            "3-3",
            state=DeviceState.FAILED,
            product="Mouse",
            error="usbhid cannot be detached",
            advice="unplug it",
            next_try=START + 90,
        ),
        make_device("3-4", state=DeviceState.FAILED, product="Mouse", error="3-4 is mounted on /mnt"),
    ]
    errors = [LoggedError(time=START, message="server[4712] ended with signal 9")]
    status = make_status(devices, error_count=1, last_errors=errors)
    assert format_status(status, 80, with_processes=True) == (
        "usbipd 0.1.0, pid 4711, user root, since 2023-11-14 22:13:20 (2 h 3 min)\n"
        "listening on 127.0.0.1:3240, [::1]:3240\n"
        "memory 33.0 MiB in 3 processes, 1 error\n"
        "\n"
        "BUSID  STATE     DEVICE  SINCE       CLIENT           SINCE             IN   OUT\n"
        "3-3    failed    Mouse\n"
        "3-4    failed    Mouse\n"
        "3-1    attached  Ultra   2023-11-14  192.0.2.7:51234  2023-11-14  1.5MiB/s  0B/s\n"
        "3-2    shared    Ultra   2023-11-14\n"
        "\n"
        "3-3: usbhid cannot be detached\n"
        "  hint: unplug it\n"
        "  next try: 2023-11-14\n"
        "3-4 is mounted on /mnt\n"
        "\n"
        "Last errors:\n"
        "2023-11-14 22:13:20  server[4712] ended with signal 9\n"
        "\n"
        "PROCESS     PID  USER      MEMORY  BUSID\n"
        "extension  4711  root    24.0 MiB\n"
        "server     4712  usbipd   9.0 MiB\n"
        "worker     4713  usbipd            3-1\n"
    )


def test_wide_terminal_shows_all_counters(utc: None) -> None:
    device = make_device(
        claim_method="libusb",
        claim_time=START,
        counters=make_counters(),
        rate=Rate(urbs=100.0, bytes_in=1.5 * 2**20, bytes_out=0.0),
        latency=Latency(p50_us=128, p99_us=1024),
    )
    title, line = format_devices([device], 200).splitlines()
    assert title.split("  ")[0] == "BUSID"
    assert line.split() == [
        *("3-1", "0781:5581", "shared", "Ultra", "high", "2023-11-14", "1.5MiB/s", "0B/s"),
        *("3", "128us", "1.0ms", "32MiB", "817B", "7000", "libusb"),
    ]
    narrower = [format_devices([device], width).splitlines()[0].split("  ") for width in range(200, 65, -1)]
    shown = [{word.strip() for word in words if word} for words in narrower]
    assert all(less <= more for more, less in itertools.pairwise(shown))  # columns disappear one by one
    assert shown[-1] == {"BUSID", "STATE", "DEVICE", "SINCE", "CLIENT", "IN", "OUT"}


def test_status_without_devices() -> None:
    text = format_status(make_status([make_device(state=DeviceState.NOT_SHARED)]), 80, with_processes=False)
    assert text.endswith("\n\nNo device is shared.\n")


def test_a_daemon_that_does_not_listen() -> None:
    assert "\nlistening on nothing\n" in format_daemon(make_status([], listening=[]), 80)


@pytest.mark.parametrize(("count", "text"), [(0, "0 errors"), (1, "1 error"), (2, "2 errors")])
def test_the_number_of_errors(count: int, text: str) -> None:
    assert format_daemon(make_status([], error_count=count), 80).endswith(f", {text}\n")


def test_only_the_newest_errors_are_shown() -> None:
    errors = [LoggedError(time=START + number, message=f"error {number}") for number in range(20)]
    lines = format_errors(errors, 80).splitlines()
    assert len(lines) == 1 + ERRORS_SHOWN
    assert lines[-1].endswith("error 19")
