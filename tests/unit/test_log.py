"""The one format of all processes' logs."""

import os
import re
import subprocess
import sys

import pytest

from usbipd import log
from usbipd.errors import UsageError


def run(program: str) -> tuple[int, list[str]]:
    """A process of its own: its pid and what it logged."""
    done = subprocess.Popen(
        [sys.executable, "-c", f"import logging\nfrom usbipd import log\n{program}"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TZ": "Pacific/Auckland"},
    )
    _output, errors = done.communicate()
    return done.pid, errors.splitlines()


def test_a_line_has_time_level_role_pid_and_busid() -> None:
    pid, lines = run("log.configure('worker', '1-2')\nlogging.getLogger('usbipd').warning('so %d', 5)")
    assert len(lines) == 1
    form = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z WARNING worker\[{pid}\] 1-2: so 5"
    assert re.fullmatch(form, lines[0])


def test_without_a_device_there_is_no_busid() -> None:
    pid, lines = run("log.configure('server')\nlogging.getLogger('usbipd').info('so')")
    assert lines[0].endswith(f"Z INFO server[{pid}]: so")


def test_the_level_decides_and_may_change() -> None:
    _pid, lines = run(
        "log.configure('server', level='warning')\nlogging.info('no')\n"
        "log.set_level('debug')\nlogging.debug('yes')"
    )
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["yes"]


def test_an_unknown_level() -> None:
    with pytest.raises(UsageError, match="'loud' is unknown: one of debug, info, warning, error"):
        log.set_level("loud")


def test_errors_are_counted() -> None:
    _pid, lines = run(
        "log.configure('extension')\ncounter = log.ErrorCounter()\nlogging.getLogger().addHandler(counter)\n"
        "logging.warning('a')\nlogging.error('b')\nlogging.critical('c')\nlogging.info('%d', counter.count)"
    )
    assert lines[-1].endswith(": 2")


def test_a_message_cannot_write_lines_of_its_own_or_drive_a_terminal() -> None:
    program = "log.configure('server')\nlogging.info('%s', 'a\\nb\\x1b[2J\\r\\x9b\\u2028\\ud800 ä\\t')"
    _pid, lines = run(program)
    assert len(lines) == 1
    assert lines[0].endswith(r": a\nb\x1b[2J\r\x9b\u2028\ud800 ä\t")


def test_a_traceback_keeps_its_lines() -> None:
    _pid, lines = run(
        "log.configure('server')\ntry: 1 / 0\nexcept ZeroDivisionError: logging.exception('so')"
    )
    assert lines[1] == "Traceback (most recent call last):"
