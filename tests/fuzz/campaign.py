"""`make fuzz`: runs every libFuzzer target for some time, from the seeds and the corpus of earlier runs.

Runs with the python of .venv; the fuzzers run in the interpreter of tests/sanitized.  Their results are in
build/fuzz/TARGET: `corpus/` for the next run, `found/` for inputs that broke an invariant, `log` with the
output of libFuzzer.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.targets import TARGETS, inputs
from tests.sanitized.build import ROOT, TREE, VENV, reports
from tests.unit.worker.fake_libusb import environment_with_fake

HERE: Final = ROOT / "build" / "fuzz"
OPTIONS: Final = "malloc_context_size=20:quarantine_size_mb=32:log_path=stderr"
LONGEST: Final = 1024
"""Bytes of an input."""
LAST_LINES: Final = 60


def fuzz(target: str, seconds: int, seed: int | None) -> bool:
    """Whether the invariant held."""
    place = HERE / target
    for each in ("seeds", "corpus", "found"):
        (place / each).mkdir(parents=True, exist_ok=True)
    for name, data in inputs(target):
        (place / "seeds" / name).write_bytes(data)
    environment = environment_with_fake(HERE) | {"ASAN_OPTIONS": OPTIONS}
    command: list[str | Path] = [VENV / "bin" / "python", "-m", "tests.fuzz.engine", target]
    command += [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={place}/found/"]
    command += ["-detect_leaks=0", "-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1"]
    command += [f"-seed={seed}"] if seed is not None else []
    command += [place / "corpus", place / "seeds"]
    with (place / "log").open("w") as log:
        done = subprocess.run(command, cwd=TREE, env=environment, stdout=log, stderr=log)
    text = (place / "log").read_text(errors="replace")
    print(f"{target}: {summary(text)}", flush=True)
    if done.returncode != 0:
        print("\n".join(text.splitlines()[-LAST_LINES:]))
        print(f"{target}: exit code {done.returncode}; all of it is in {place}/log")
    return done.returncode == 0


def summary(log: str) -> str:
    """Seed, speed, coverage and, if there is one, the file that broke the invariant."""
    facts = []
    for pattern, text in (
        (r"INFO: Seed: (\d+)", "seed {}"),
        (r"stat::number_of_executed_units:\s*(\d+)", "{} inputs"),
        (r"stat::average_exec_per_sec:\s*(\d+)", "{} a second"),
        (r"cov: (\d+)", "{} edges of _pump reached"),
        (r"Test unit written to (\S*/slow-unit-\S+)", "slow: {}"),
        (r"Test unit written to (\S*/(?!slow-unit-)\S+)", "BROKEN by {}"),
    ):
        found = re.findall(pattern, log)
        facts += [text.format(found[-1])] if found else []
    return ", ".join(facts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, required=True, help="for all targets together")
    parser.add_argument("--seed", type=int, help="libFuzzer's, to have the same run again")
    options = parser.parse_args()
    held = [fuzz(target, max(1, options.seconds // len(TARGETS)), options.seed) for target in TARGETS]
    found = reports()
    for report in found:
        print(report.read_text(errors="replace"))
    return 0 if all(held) and not found else 1


if __name__ == "__main__":
    sys.exit(main())
