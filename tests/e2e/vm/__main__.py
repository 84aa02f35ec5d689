"""Runs one command in the virtual machine, or a shell.  Runs on the host, as `python -m tests.e2e.vm`."""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.e2e.vm.machine import DIED, TIMED_OUT, Machine, qemu_command, tail, write_job
from tests.e2e.vm.prepare import BUILD, PrepareError


def main() -> int:
    """The exit status is the command's, or TIMED_OUT, or DIED."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.vm",
        description="Run a command as root in the virtual machine of the end-to-end tests.",
        usage="%(prog)s [--timeout SECONDS] [--console] -- COMMAND [ARGUMENT...]\n       %(prog)s --shell",
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds until it is killed (%(default)s)")
    parser.add_argument("--console", action="store_true", help="show the kernel's console at the end")
    parser.add_argument("--shell", action="store_true", help="a shell on this terminal; Ctrl-A X kills it")
    parser.add_argument("command", nargs="*", help="with its arguments, after --")
    arguments = parser.parse_args()
    if arguments.shell == bool(arguments.command):
        parser.error("specify either a command or --shell")
    return _shell() if arguments.shell else _run(arguments.command, arguments.timeout, arguments.console)


def _run(command: list[str], timeout: float, console: bool) -> int:
    with Machine("command", command, directory=Path.cwd(), timeout=timeout, show=sys.stdout.write) as machine:
        status = machine.wait()
    if console or status in (TIMED_OUT, DIED):
        for name in ("qemu.log", "console.log"):
            print(f"---- {name} ----", tail(machine.job / name, 80), sep="\n", file=sys.stderr)
    return status


def _shell() -> int:
    job = BUILD / "jobs" / "shell"
    write_job(job, ["bash", "-i"], Path.cwd())
    (job / "interactive").touch()
    return subprocess.run([*qemu_command(job), "-serial", "mon:stdio"], check=False).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PrepareError as error:
        sys.exit(f"e2e: {error}")
