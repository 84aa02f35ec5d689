"""What the bench reads in a dump of callgrind (Valgrind manual, "Callgrind Format Specification")."""

import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the bench needs Linux", allow_module_level=True)

from tests.bench.callgrind import by_library, total

DUMP = """\
# callgrind format
events: Ir

ob=(1) /work/worker
fl=(1) worker.c
fn=(1) main
10 100
+1 20
cob=(2) /usr/lib/libusb-1.0.so.0
cfi=(2) io.c
cfn=(2) libusb_submit_transfer
calls=3 40
* 3000
cfn=(3) own
calls=1 50
12 9999
-2 7

ob=(2)
fl=(2)
fn=(2)
41 1000
cob=(3) /lib/libc.so.6
cfn=(4) ioctl
calls=3 1
+1 1900
cob=(1)
cfn=(5) callback
calls=1 1
* 100

ob=(3)
fn=(4)
1 1900

totals: 3027
"""


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    file = tmp_path / "callgrind.1.1"
    file.write_text(DUMP)
    return file


def test_the_total(dump: Path) -> None:
    assert total(dump) == 3027


def test_a_dump_without_a_total_ends_the_bench(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("events: Ir\n")
    with pytest.raises(SystemExit, match="empty: no total"):
        total(tmp_path / "empty")


def test_what_each_library_does_and_what_it_has_others_do(dump: Path) -> None:
    """A call within a library is none of another, and what it costs is not counted a second time."""
    assert by_library(dump) == {
        ("worker", ""): 127,
        ("worker", "libusb-1.0.so.0"): 3000,
        ("libusb-1.0.so.0", ""): 1000,
        ("libusb-1.0.so.0", "libc.so.6"): 1900,
        ("libusb-1.0.so.0", "worker"): 100,
        ("libc.so.6", ""): 1900,
    }
