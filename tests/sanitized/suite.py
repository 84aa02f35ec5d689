"""`make asan`: unit tests, integration tests, tests/mac and tests/fuzz in the interpreter of tests/sanitized,
two at a time.

A sanitizer report of any process fails the run, whether or not a test notices it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.sanitized.build import TREE, VENV, reports

MEASURES_MEMORY: Final = "it measures memory, and AddressSanitizer delays frees"
HAS_REPORT: Final = "the interpreter itself opens the file of a worker's report (python.c)"
CRASHES: Final = "libusb without our patches crashes in it, as expected"
MEASURES_TIME: Final = "it measures time, and the leak check at the end of each process takes time"
OWN_INTERPRETER: Final = "its daemons run in a separate interpreter, without the sanitizers"
SAME_CODE: Final = "it runs the same code as test_worker.py, many times"
PARTS: Final = (("tests/integration", "tests/mac"), ("tests/unit", "tests/fuzz"))
NOT_HERE: Final = (
    ("tests/integration/test_kept_claims.py", "test_a_thousand_sessions_leak_nothing", MEASURES_MEMORY),
    (
        "tests/unit/worker/test_session.py",
        "test_memory_of_a_client_is_returned_to_the_system",
        MEASURES_MEMORY,
    ),
    ("tests/mac/test_libusb_patches.py", "", CRASHES),
    ("tests/unit/extension/test_supervisor.py", "test_a_child_gets_its_channel_and_nothing_else", HAS_REPORT),
    ("tests/mac/daemons", "", OWN_INTERPRETER),
    ("tests/integration/test_run_on_host.py", "", OWN_INTERPRETER),
    ("tests/mac/test_switches.py", "test_a_session_with_these_switches", SAME_CODE),
    ("tests/integration/test_processes.py", "test_shutdown_takes_less_than_two_seconds", MEASURES_TIME),
)
"""Files, beginnings of names (empty: all), and why."""
NOT_OURS: Final = (
    "tests/unit/packaging",
    "tests/unit/test_acceptance.py",
    "tests/unit/test_imports_of_packages.py",
    "tests/unit/test_map.py",
    "tests/unit/test_docs.py",
    "tests/unit/test_picture.py",
    "tests/unit/test_words.py",
    "tests/integration/test_completions.py",
    "tests/mac/test_kernel.py",
    "tests/mac/test_usbip.py",
)
"""Tests that use none of our compiled modules."""


def main() -> int:
    begin = time.monotonic()
    command: list[str | Path] = [VENV / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:faulthandler"]  # it would replace AddressSanitizer's SIGSEGV handler
    for file, test, reason in NOT_HERE:
        print(f"not run: {file}{test and f'::{test}'}: {reason}")
        command += ["--deselect", f"{file}::{test}" if test else file]
    for path in NOT_OURS:
        print(f"not run: {path}: it tests no compiled module")
        command += ["--ignore", path]
    logs = [(TREE / f"{index}.log").open("w+") for index, _ in enumerate(PARTS)]
    running = [
        subprocess.Popen([*command, *part], cwd=TREE, stdout=log, stderr=log, env=os.environ)
        for part, log in zip(PARTS, logs, strict=True)
    ]
    codes = [process.wait() for process in running]
    for log in logs:
        log.seek(0)
        print(log.read())
    found = reports()
    for report in found:
        print(f"---- {report.name} ----\n{report.read_text(errors='replace')}")
    print(f"{time.monotonic() - begin:.0f} s, exit codes {codes}, {len(found)} reports of sanitizers")
    return 0 if not any(codes) and not found else 1


if __name__ == "__main__":
    sys.exit(main())
