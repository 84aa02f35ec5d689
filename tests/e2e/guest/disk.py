"""A disk that the stock client has attached: its file system, and a writer.  Runs in the guest."""

import hashlib
import os
import random
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.system import run, wait_for
from tests.e2e.guest.usb import UsbDevice

KIB: Final = 1024
LARGEST: Final = 96 * KIB
KEPT: Final = 32
"""Maximum of files; older ones are removed."""
CORRECTED: Final = 1  # e2fsck(8): errors were corrected


class Writer:
    """Writes files until the disk fails, and records which of them the disk has acknowledged."""

    def __init__(self, directory: Path, choices: random.Random) -> None:
        self.acknowledged: dict[str, str] = {}
        """SHA-256 of each file that must exist from now on: fsync(2) has succeeded."""
        self.written = 0
        self.error: OSError | None = None
        self._directory = directory
        self._choices = choices
        self._stop = threading.Event()
        self._thread: threading.Thread

    def start(self) -> None:
        """Start, or continue after a failure."""
        self.error = None
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop, after the current file."""
        self._stop.set()
        self._thread.join()

    @property
    def works(self) -> bool:
        """Whether it is writing: it stops when the disk fails."""
        return self._thread.is_alive()

    def wait_until_written(self, files: int) -> bool:
        """Wait for a total of `files`; returns whether the disk still works."""
        wait_for("the disk to take files", lambda: self.written >= files or not self.works)
        return self.works

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._write_one()
        except OSError as error:
            self.error = error

    def _write_one(self) -> None:
        data = self._choices.randbytes(self._choices.randint(1, LARGEST))
        path = self._directory / f"{self.written:06}"
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.acknowledged[path.name] = hashlib.sha256(data).hexdigest()
        self.written += 1
        if len(self.acknowledged) > KEPT:
            oldest = min(self.acknowledged)
            del self.acknowledged[oldest]  # first: from here on it may or may not exist
            (self._directory / oldest).unlink()


class Disk:
    """An ext4 file system, on whatever device it currently is."""

    def __init__(self, mount_point: Path) -> None:
        self.mount_point = mount_point

    def make(self, device: UsbDevice) -> None:
        """Create the file system."""
        run("mkfs.ext4", "-q", "-F", self._node(device))

    def mount(self, device: UsbDevice) -> None:
        """Mount it."""
        self.mount_point.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "ext4", self._node(device), self.mount_point)

    def unmount(self) -> None:
        """Unmount it; errors of a removed disk are ignored."""
        run("umount", self.mount_point)

    def repair(self, device: UsbDevice) -> None:
        """Check it as after a power cut; all errors must be repairable."""
        node = self._node(device)
        done = subprocess.run(["e2fsck", "-f", "-y", node], capture_output=True, text=True, check=False)
        if done.returncode > CORRECTED:
            raise StepError(
                f"`e2fsck -f -y {node}` exited with {done.returncode}: {done.stdout}{done.stderr}"
            )

    def check(self, device: UsbDevice) -> None:
        """Raise unless the file system has no errors."""
        run("e2fsck", "-f", "-n", self._node(device))  # -n: repairs nothing

    def check_files(self, acknowledged: dict[str, str]) -> None:
        """Every acknowledged file must exist, with the acknowledged content."""
        wrong = [name for name, sha256 in acknowledged.items() if self._sha256(name) != sha256]
        check(not wrong, f"of {len(acknowledged)} acknowledged files these are lost or wrong: {wrong}")

    def _sha256(self, name: str) -> str | None:
        with suppress(FileNotFoundError):
            return hashlib.sha256((self.mount_point / name).read_bytes()).hexdigest()
        return None

    def _node(self, device: UsbDevice) -> Path:
        return wait_for(f"a block device of {device.busid}", device.block_device)


def check_file_system(device: UsbDevice, mount_point: Path, size: int) -> None:
    """Create a file system, write `size` bytes, unmount, and read them back from the disk itself."""
    disk = Disk(mount_point)
    data = random.randbytes(size)
    disk.make(device)
    disk.mount(device)
    with (mount_point / "data").open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    disk.unmount()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")  # read from the disk, not from the page cache
    disk.check(device)
    disk.mount(device)
    found = hashlib.sha256((mount_point / "data").read_bytes()).hexdigest()
    disk.unmount()
    check(
        found == hashlib.sha256(data).hexdigest(),
        f"{size} bytes on {device.busid} differ from the data written",
    )
