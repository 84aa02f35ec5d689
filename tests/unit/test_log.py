"""The common log format of all processes."""

import asyncio
import logging
import os
import re
import select
import subprocess
import sys
import syslog
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.own_log import OwnLog, own_log
from usbipd import limiter, log
from usbipd.errors import UsageError
from usbipd.limiter import BURST


def run(program: str) -> tuple[int, list[str]]:
    """A separate process: its pid and its log."""
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


def test_an_unread_log_blocks_no_process() -> None:
    """No line waits, short or larger than a pipe; a reader that resumes sees the count of lost lines."""
    reader, writer = os.pipe()
    program = (
        "import logging, sys\nfrom usbipd import log\nlog.PATIENCE = 0.01\nlog.configure('server')\n"
        "logging.info('x' * 1_000_000)\n"
        "for _line in range(5000): logging.info('an unread line')\n"
        "print('done', flush=True)\nsys.stdin.readline()\nlogging.info('a line that is read')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    with process, os.fdopen(reader, encoding="utf-8") as log_file:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready, _writable, _failed = select.select([process.stdout], [], [], 20)
            assert ready, "it waits for a reader"
            os.set_blocking(reader, False)
            first = log_file.read()
            os.set_blocking(reader, True)
            process.stdin.write("\n")
            process.stdin.flush()
            torn, lost, last = log_file.read().splitlines()
        finally:
            process.kill()
    assert 0 < len(first) < 1_000_000
    assert not torn, "what comes next begins a line"
    assert lost.endswith("5001 log lines dropped: the log reader was too slow")
    assert "WARNING server[" in lost
    assert last.endswith(": a line that is read")


def test_an_unknown_level() -> None:
    with pytest.raises(UsageError, match="unknown log level 'loud': use one of debug, info, warning, error"):
        log.set_level("loud")


def test_errors_are_counted() -> None:
    _pid, lines = run(
        "log.configure('extension')\ncounter = log.ErrorCounter()\nlogging.getLogger().addHandler(counter)\n"
        "logging.warning('a')\nlogging.error('b')\nlogging.critical('c')\nlogging.info('%d', counter.count)"
    )
    assert lines[-1].endswith(": 2")


def test_the_last_errors_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.Logger("alone")
    counter = log.ErrorCounter()
    logger.addHandler(counter)
    logger.warning("no error")
    assert list(counter.last) == []
    logger.error("%s: %s", "a", "b\n\x1b[2J")
    try:
        raise ValueError("c\nd")
    except ValueError:
        logger.exception("it failed")
    assert [error.message for error in counter.last] == [r"a: b\n\x1b[2J", r"it failed: ValueError('c\nd')"]
    assert counter.last[0].time <= counter.last[1].time
    for number in range(30):
        logger.error("%d %s", number, "x\0" * 1000)
    assert counter.count == 32
    assert [error.message.split()[0] for error in counter.last] == [str(n) for n in range(10, 30)]
    assert {len(error.message) for error in counter.last} == {500}
    assert counter.last[-1].message.endswith("…")


def test_errors_that_others_cause_do_not_displace_the_rest() -> None:
    logger = logging.Logger("alone")
    counter = log.ErrorCounter()
    logger.addHandler(counter)
    logger.error("our own")
    for number in range(100):
        logger.error("%s: %d", "a stranger", number, extra=log.LIMITED)
    assert counter.count == 101
    assert [error.message for error in counter.last] == ["our own", "a stranger: 99"]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_only_what_others_cause_is_limited(level: str) -> None:
    logger = logging.getLogger("usbipd.test")
    with own_log(level) as lines:
        for number in range(BURST + 10):
            logger.info("%d of our own", number)
            logger.info("%d of others", number, extra=log.LIMITED)
            logger.warning("%d of others", number, extra=log.LIMITED)
        assert len(lines.lines("of our own")) == BURST + 10
        of_others = BURST + 10 if level == "debug" else BURST
        assert len(lines.lines("INFO server")) == BURST + 10 + of_others
        assert len(lines.lines("WARNING server")) == of_others


def test_the_count_of_left_out_lines_is_written_at_exit() -> None:
    _pid, lines = run(
        "log.configure('worker')\n"
        f"for number in range({BURST} + 7): logging.error('no %d', number, extra=log.LIMITED)"
    )
    assert len(lines) == BURST + 1
    assert lines[-1].endswith(f": 7 more lines like this, the last one: no {BURST + 6}")
    assert " ERROR worker[" in lines[-1]


def test_an_event_loop_writes_the_count_as_soon_as_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another thread has logged, and if the loop has been closed meanwhile."""
    monkeypatch.setattr(limiter, "INTERVAL", 0.01)
    logger = logging.getLogger("usbipd.test")

    def flood() -> None:
        for number in range(BURST + 5):
            logger.error("no %d", number, extra=log.LIMITED)

    async def test(lines: OwnLog) -> None:
        log.use_timer(asyncio.get_running_loop())
        await asyncio.to_thread(flood)
        async with asyncio.timeout(20):
            while lines.count("no ") < BURST + 5:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0.001)

    with own_log() as lines:
        asyncio.run(test(lines))
        flood()
        log.tell_left_out()
        assert lines.count("no ") == 2 * (BURST + 5)


def test_an_error_that_cannot_be_read_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    counter = log.ErrorCounter()
    logger = logging.Logger("alone")
    logger.addHandler(counter)
    logger.error("%d", "no number")
    assert (counter.count, len(counter.last)) == (1, 0)


def test_a_message_cannot_forge_lines_or_control_a_terminal() -> None:
    program = "log.configure('server')\nlogging.info('%s', 'a\\nb\\x1b[2J\\r\\x9b\\u2028\\ud800 ä\\t')"
    _pid, lines = run(program)
    assert len(lines) == 1
    assert lines[0].endswith(r": a\nb\x1b[2J\r\x9b\u2028\ud800 ä\t")


def test_a_traceback_keeps_its_lines() -> None:
    _pid, lines = run(
        "log.configure('server')\ntry: 1 / 0\nexcept ZeroDivisionError: logging.exception('so')"
    )
    assert lines[1] == "Traceback (most recent call last):"


def test_a_traceback_cannot_control_a_terminal() -> None:
    _pid, lines = run(
        "log.configure('server')\ntry: raise ValueError('\x1b[2J')\n"
        "except ValueError: logging.exception('so')"
    )
    assert lines[-1] == r"ValueError: \x1b[2J"


class Syslog:
    """A fake of the system's log; its entries, the name of the priority first."""

    LEVELS = {  # noqa: RUF012
        getattr(syslog, name): name
        for name in ("LOG_DEBUG", "LOG_NOTICE", "LOG_WARNING", "LOG_ERR", "LOG_CRIT")
    }

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[tuple[str, int, int]] = []
        self.lines: list[tuple[str, str]] = []
        monkeypatch.setattr(syslog, "openlog", lambda *arguments: self.opened.append(arguments))
        monkeypatch.setattr(
            syslog, "syslog", lambda priority, line: self.lines.append((self.LEVELS[priority], line))
        )


@pytest.fixture
def system_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Syslog]:
    """The fake, in a process whose log the test reads."""
    (tmp_path / "log").touch()
    monkeypatch.setattr(log, "_SYSLOG_SOCKETS", (tmp_path / "log",))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()  # else they are closed and write held lines
    yield Syslog(monkeypatch)
    root.handlers[:] = before
    root.setLevel(level)


def test_syslog_is_opened_at_once_and_gets_the_line_without_the_time(
    system_log: Syslog, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("worker", "1-2", "debug", "syslog")
    assert system_log.opened == [("usbipd", syslog.LOG_NDELAY, syslog.LOG_DAEMON)]
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.log(level, "so %d", level)
    who = f"worker[{os.getpid()}] 1-2"
    assert system_log.lines == [
        ("LOG_DEBUG", f"DEBUG {who}: so 10"),
        ("LOG_NOTICE", f"INFO {who}: so 20"),
        ("LOG_WARNING", f"WARNING {who}: so 30"),
        ("LOG_ERR", f"ERROR {who}: so 40"),
        ("LOG_CRIT", f"CRITICAL {who}: so 50"),
    ]
    assert capsys.readouterr().err == ""


def test_lines_to_syslog_are_clean_and_a_traceback_keeps_its_lines(system_log: Syslog) -> None:
    log.configure("server", to="syslog")
    logging.info("%s", "a\nb\0\x1b[2J\ud800")
    try:
        raise ValueError("c\0d")
    except ValueError:
        logging.exception("so")
    who = f"server[{os.getpid()}]"
    first, second, third, *_others, last = (line for _priority, line in system_log.lines)
    assert first == rf"INFO {who}: a\nb\x00\x1b[2J\ud800"
    assert (second, third) == (f"ERROR {who}: so", "Traceback (most recent call last):")
    assert last == r"ValueError: c\x00d"


def test_a_process_moves_to_syslog_and_back(system_log: Syslog, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("server")
    logging.getLogger().addHandler(counter := log.ErrorCounter())
    logging.error("before")
    log.send_to("syslog")
    logging.error("between")
    log.send_to("stderr")
    logging.error("after")
    lines = [line.rsplit(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["before", "after"]
    assert [line.rsplit(" ", 1)[1] for _priority, line in system_log.lines] == ["between"]
    assert counter.count == 3, "other handlers stay"


def test_a_host_without_syslog_is_reported(
    system_log: Syslog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "_SYSLOG_SOCKETS", (tmp_path / "none",))
    log.configure("extension", to="syslog")
    assert "no syslog daemon answers on this host" in capsys.readouterr().err
    assert system_log.lines == []


@pytest.mark.parametrize("to", ["stderr", "syslog", "/var/log/usbipd.log"])
def test_valid_destinations(to: str) -> None:
    log.check_destination(to)


@pytest.mark.parametrize("to", ["", "file", "var/log", "~/log", "/a\0b"])
def test_invalid_destinations(to: str) -> None:
    with pytest.raises(
        UsageError, match=r"unknown log destination .*: use stderr, syslog, or the absolute path of a file"
    ):
        log.check_destination(to)


def test_an_unknown_destination() -> None:
    with pytest.raises(UsageError, match="unknown log destination 'printer': use one of stderr, syslog"):
        log.send_to("printer")


def test_both_streams_of_a_child_go_to_its_log_file(tmp_path: Path) -> None:
    program = """
import os, sys
from usbipd import log
log.take_over(int(sys.argv[1]))
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
"""
    path = tmp_path / "log"
    with path.open("w") as file:
        command = [sys.executable, "-c", program, str(file.fileno())]
        done = subprocess.run(command, capture_output=True, pass_fds=[file.fileno()], check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert path.read_text() == "out\nerr\n"
