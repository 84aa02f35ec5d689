"""The medium of a disk: which files are accepted, and the errors for others."""

import contextlib
import os
from pathlib import Path

import pytest

from tests.unit.simulated.bot_host import BotHost
from usbipd.errors import UsageError
from usbipd.simulated.mass_storage import MassStorage
from usbipd.simulated.medium import DEFAULT_SIZE, FileMedium, MemoryMedium, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("65536", 65536),
        ("512K", 512 << 10),
        ("64M", 64 << 20),
        ("1G", 1 << 30),
        ("2T", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "M", "1.5M", "64m", "64MB", "1 M", "\u0661K", "0512", "9" * 30])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number of bytes such as"):
        parse_size(text)


def test_memory_is_zero_and_keeps_what_is_written() -> None:
    medium = MemoryMedium(4096)
    assert bytes(medium.read(0, 4096)) == bytes(4096)
    medium.write(512, memoryview(b"x" * 512))
    assert bytes(medium.read(511, 3)) == b"\0xx"
    medium.close()


def test_more_memory_than_available() -> None:
    with pytest.raises(UsageError, match="no memory for a disk of"):
        MemoryMedium(1 << 62)


def test_a_missing_file_is_created_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    FileMedium(path, 1 << 20).close()
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_mode & 0o777 == 0o600
    FileMedium(tmp_path / "default.img", None).close()
    assert (tmp_path / "default.img").stat().st_size == DEFAULT_SIZE


def test_an_existing_file_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 8)
    medium = FileMedium(path, None)
    assert medium.size == 2048
    assert medium.read(513, 3) == bytes((1, 2, 3))
    medium.write(1024, memoryview(b"new"))
    medium.close()
    assert path.read_bytes()[1023:1028] == b"\xffnew\x03"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.img"
    medium = FileMedium(path, 4096)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    data = bytes(range(256)) * 4
    medium.write(1024, memoryview(data))
    medium.close()
    assert path.read_bytes() == bytes(1024) + data + bytes(2048)


def test_a_file_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1024))
    with pytest.raises(UsageError, match=r"disk.img has 1024 bytes, not the 2048 of size="):
        FileMedium(path, 2048)
    assert path.read_bytes() == bytes(1024)


def test_a_file_that_is_not_a_multiple_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1000))
    with pytest.raises(UsageError, match="1000 bytes, not a multiple of 512"):
        FileMedium(path, None)


def test_a_path_that_is_not_a_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(UsageError, match="fifo cannot be a disk: it is not a regular file"):
        FileMedium(fifo, None)
    with pytest.raises(UsageError, match="cannot open"):
        FileMedium(tmp_path, None)
    with pytest.raises(UsageError, match="No such file or directory"):
        FileMedium(tmp_path / "nowhere" / "disk.img", None)


def test_a_file_belongs_to_one_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    first = FileMedium(path, 4096)
    with pytest.raises(UsageError, match="in use by another simulated disk"):
        FileMedium(path, 4096)
    first.close()
    FileMedium(path, 4096).close()


def test_refused_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1000))
    before = len(list(Path("/dev/fd").iterdir()))
    with pytest.raises(UsageError):
        FileMedium(path, None)
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize("is_full", [False, True])
def test_a_disk_is_written_before_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    path = tmp_path / "disk.img"
    medium = FileMedium(path, 4096)
    before = len(list(Path("/dev/fd").iterdir()))
    synced: list[bool] = []

    def sync(descriptor: int) -> None:
        synced.append(os.path.sameopenfile(descriptor, file.fileno()))
        if is_full:
            raise OSError(28, "No space left on device")

    with path.open() as file:
        monkeypatch.setattr(os, "fsync", sync)
        with pytest.raises(OSError, match="No space left") if is_full else contextlib.nullcontext():
            medium.close()
    assert synced == [True]
    assert len(list(Path("/dev/fd").iterdir())) == before - 1


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    medium = FileMedium(path, 4096)
    os.truncate(path, 1024)
    with pytest.raises(OSError, match="ends before byte 2048"):
        medium.read(512, 1536)
    medium.close()


def test_the_disk_in_a_file_persists(tmp_path: Path) -> None:
    options = {"file": str(tmp_path / "disk.img"), "size": "64K"}
    write, read = bytes.fromhex("2a 00 00000002 00 0002 00"), bytes.fromhex("28 00 00000002 00 0002 00")
    data = bytes(range(256)) * 4
    disk = MassStorage(options)
    assert BotHost(disk).command_out(write, data).status == 0
    disk.close()
    disk = MassStorage(options)
    assert BotHost(disk).command_in(read, 1024).data == data
    disk.close()
    assert Path(options["file"]).read_bytes()[1024:2048] == data
