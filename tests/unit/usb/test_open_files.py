"""Programs that have a file open, in a fake /proc."""

import os
from pathlib import Path

import pytest

from usbipd.usb.open_files import Program, programs_using


def add(proc: Path, pid: int, name: bytes | None, **links: str) -> None:
    process = proc / str(pid)
    (process / "fd").mkdir(parents=True)
    if name is not None:
        (process / "comm").write_bytes(name)
    for link, target in links.items():
        place = process if link in ("cwd", "root", "exe") else process / "fd"
        (place / link.removeprefix("fd")).symlink_to(target)


def is_file(path: bytes) -> bool:
    return path == b"/file"


def test_every_way_to_hold_a_file(tmp_path: Path) -> None:
    add(tmp_path, 20, b"reader\n", fd3="socket:[12]", fd4="/file")
    add(tmp_path, 3, b"walker\n", cwd="/file")
    add(tmp_path, 4, b"jailed\n", root="/file")
    add(tmp_path, 5, b"program\n", exe="/file")
    add(tmp_path, 6, b"other\n", cwd="/", root="/", exe="/other", fd0="/dev/null")
    (tmp_path / "self").mkdir()
    assert programs_using(tmp_path, is_file) == [
        Program(3, "walker"),
        Program(4, "jailed"),
        Program(5, "program"),
        Program(20, "reader"),
    ]


def test_a_name_is_made_readable(tmp_path: Path) -> None:
    add(tmp_path, 1, b"a\x1b\n b\xff\n", fd0="/file")
    add(tmp_path, 2, b"\n", fd0="/file")
    add(tmp_path, 3, None, fd0="/file")
    assert [str(program) for program in programs_using(tmp_path, is_file)] == [
        "a\\x1b\\n b\\xff (pid 1)",
        "? (pid 2)",
        "? (pid 3)",
    ]


def test_a_program_that_exits_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert programs_using(tmp_path, is_file) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a /proc")
def test_this_very_process(tmp_path: Path) -> None:
    path = tmp_path / "open"
    with path.open("w"):
        found = programs_using(Path("/proc"), lambda link: link == os.fsencode(path))
    assert [program.pid for program in found] == [os.getpid()]
