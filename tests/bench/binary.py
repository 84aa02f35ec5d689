"""What the executable costs: its start and its size, beside a program that says hello.  Runs in the bench.

The hello is packed twice.  As `pyinstaller --onefile` packs it, it is what any Python program costs that
comes as one file: the target.  Packed with our options it unpacks the same Python and imports nothing of its
own.  The rest of what `usbipd-ext --status` takes is the unpacking of what the daemon needs, the import of
what the command needs, and the question to the daemon.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.bench.footprint import alternate
from tests.bench.result import Comparison
from tests.integration.daemon import Daemon

ROOT: Final = Path(__file__).resolve().parents[2]
EXECUTABLE: Final = ROOT / "dist" / "usbipd"

START_TARGET: Final = 1.3
MB: Final = 1_000_000
ALIKE: Final = "hello packed alike"


def compare(work: Path, turns: int) -> list[Comparison]:
    """Start time and size of what `make binary` has made; the hellos are made below `work`."""
    spec, script = (Path(__file__).with_name(name) for name in ("hello.spec", "hello.py"))
    hello = pack(work, "hello", str(spec))
    bare = pack(work, "bare", "--onefile", "--name", "bare", "--specpath", str(work), str(script))
    with TemporaryDirectory() as directory:
        daemon = Daemon(Path(directory), "loopback")
        try:
            rows = start_time(bare, hello, daemon.socket, turns)
            daemon.stop()
        finally:
            daemon.kill()
    sizes = ((EXECUTABLE.stat().st_size / MB,), (hello.stat().st_size / MB,))
    return [*rows, Comparison("executable: size", "MB", *sizes, ALIKE)]


def pack(work: Path, name: str, *arguments: str) -> Path:
    """The file `name` in `work`, as PyInstaller makes it."""
    if not EXECUTABLE.exists():
        sys.exit(f"there is no {EXECUTABLE}: run `make binary` first")
    directories = ["--distpath", str(work), "--workpath", str(work / "pyinstaller")]
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", *directories]
    subprocess.run([*command, *arguments], check=True)
    return work / name


def start_time(bare: Path, alike: Path, socket: Path, turns: int) -> list[Comparison]:
    """`usbipd-ext --status`, from the first instruction of its launcher to the end of its unpacked files."""
    ask = [str(EXECUTABLE.with_name("usbipd-ext")), "--status", "--socket", str(socket)]
    python = [sys.executable, "-I", "-c", "pass"]
    rows = []
    for reference, name, target in (
        ([str(bare)], "hello of pyinstaller --onefile", START_TARGET),
        ([str(alike)], ALIKE, None),
        (python, "python -c pass", None),
    ):
        pairs = [alternate(ask, reference) for _ in range(turns)]
        ours, theirs = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        rows.append(
            Comparison("executable: usbipd-ext --status", "ms", ours, theirs, name, target, "at most")
        )
    return rows
