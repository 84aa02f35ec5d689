"""The log file of a daemon, and files that cannot be one.  In separate processes: it replaces stderr."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from usbipd.errors import UsageError
from usbipd.log_file import check_log_file

PROGRAM = """
import os, sys
from pathlib import Path
from usbipd.errors import UsageError
from usbipd.log_file import LogFile
path = Path(sys.argv[1])
before = len(os.listdir("/dev/fd"))
try:
    with LogFile(path) as file:
        os.write(2, b"one\\n")
        path.rename(path.with_suffix(".0"))
        os.write(2, b"two\\n")
        file.reopen()
        os.write(2, b"three\\n")
        if "gone" in sys.argv:
            path.unlink()
            path.mkdir()
            try:
                file.reopen()
            except UsageError as error:
                print(error)
            os.write(2, b"four\\n")
            print(os.fstat(2).st_size)
except UsageError as error:
    print(error, error.exit_code, error.code)
os.write(2, b"as before\\n")
print(sorted(os.listdir("/dev/fd"))[:3], len(os.listdir("/dev/fd")) - before)
"""


def run(path: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> tuple[list[str], str]:
    """The program's output, and what it wrote to its original stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), *arguments],
        capture_output=True,
        stdin=stdin,
        text=True,
        timeout=20,
        check=True,
        umask=0,
    )
    return done.stdout.splitlines(), done.stderr


def test_the_file_is_stderr_until_the_end_and_follows_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("zero\n")
    printed, said = run(path)
    assert path.with_suffix(".0").read_text() == "zero\none\ntwo\n", "what was there stays"
    assert path.read_text() == "three\n"
    assert said == "as before\n"
    assert printed == ["['0', '1', '2'] 0"], "no descriptor is left"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_cannot_be_reopened_keeps_the_old_one(tmp_path: Path) -> None:
    printed, said = run(tmp_path / "log", "gone")
    assert printed[0] == f"cannot log to {tmp_path}/log: Is a directory"
    assert printed[1] == str(len("three\nfour\n"))
    assert said == "as before\n"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "other").touch()
    path.symlink_to(path.parent / "other")


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Path.mkdir, "Is a directory"),
        (link, "a symbolic link"),
        (device, "a symbolic link"),
        (fifo, "No such device or address"),
    ],
)
def test_unusable_log_files(tmp_path: Path, make: object, why: str) -> None:
    path = tmp_path / "log"
    make(path)  # type: ignore[operator]
    printed, said = run(path)
    assert printed[0] == f"cannot log to {path}: {why} 2 bad-log-file"
    assert said == "as before\n", "stderr is what it was"


def test_a_fifo_with_a_reader_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        printed, _said = run(path)
    finally:
        os.close(reader)
    assert printed[0] == f"cannot log to {path}: not a regular file 2 bad-log-file"


def test_a_device_that_all_users_can_write_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot log to /dev/null: not a regular file"):
        check_log_file(Path("/dev/null"))


def test_a_missing_directory(tmp_path: Path) -> None:
    printed, _said = run(tmp_path / "none" / "log")
    assert printed[0] == f"cannot log to {tmp_path}/none/log: No such file or directory 2 bad-log-file"


ANNA = 54321
"""A user without a name."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories to others")
@pytest.mark.parametrize("change", [lambda path: os.chown(path, ANNA, 0), lambda path: path.chmod(0o777)])
def test_root_does_not_log_to_a_file_that_others_can_replace(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    change(directory)
    printed, _said = run(directory / "log")
    what = f"another user can replace it: {directory} "
    assert printed[0].startswith(f"cannot log to {directory}/log: {what}")
    assert printed[0].endswith(" 2 bad-log-file")
    assert list(directory.iterdir()) == []
    with pytest.raises(UsageError) as caught:
        check_log_file(directory / "log")
    assert caught.value.advice == "choose a directory that only root can change, such as /var/log"
    own = directory / "own"
    own.mkdir()
    assert run(own / "log")[0][0].startswith("['0'"), "a directory of root's below it will do"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_root_does_not_log_into_a_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    os.chown(path, ANNA, 0)
    assert f"{path} belongs to {ANNA}" in run(path)[0][0]
    assert path.read_text() == ""


def test_a_file_with_another_hard_link(tmp_path: Path) -> None:
    (tmp_path / "important").touch()
    (tmp_path / "log").hardlink_to(tmp_path / "important")
    printed, _said = run(tmp_path / "log")
    assert "a file that has other hard links" in printed[0]
    assert (tmp_path / "important").read_text() == ""


def test_the_check_before_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "log"
    check_log_file(path)
    assert not path.exists(), "nothing is made"
    path.write_text("kept")
    check_log_file(path)
    assert path.read_text() == "kept"
    (tmp_path / "link").symlink_to(path)
    for wrong, why in (
        (tmp_path / "link", "a symbolic link"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "log", "No such file or directory"),
    ):
        with pytest.raises(UsageError, match=f"cannot log to {wrong}: {why}"):
            check_log_file(wrong)
