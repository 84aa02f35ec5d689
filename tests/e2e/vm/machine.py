"""Boots the virtual machine and runs one command in it as root.  Runs on the host.

The guest sees the host's files under an overlay, so commands have the same paths as on the host.  The output
is streamed, and the exit status is returned.
"""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.e2e.vm.prepare import BUILD, VM, PrepareError, prepare

TIMED_OUT: Final = 124  # as in timeout(1)
DIED: Final = 125  # the guest stopped without a status: a panic, or an error of QEMU

_STATUS: Final = re.compile(r"e2e: exit status (\d+)$")  # printed by guest_job.sh at the end


class Machine:
    """One boot, for a `with` block; the command's output is in `lines`.

    The job directory keeps output.log, console.log (the kernel's), qemu.log, and whatever the command wrote
    into /run/e2e.  The command can control QEMU, see guest/monitor.py.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        directory: Path,
        timeout: float = 300,
        hardware: Sequence[str] = (),
        systemd: bool = False,
        show: Callable[[str], object] | None = None,
    ) -> None:
        """`directory` is the command's working directory, `timeout` in seconds; `show` gets each line.

        `hardware` are QEMU options for added hardware; paths in them are relative to the job directory.  With
        `systemd`, systemd is process 1 of the guest.
        """
        self.job = BUILD / "jobs" / name
        self.lines: list[str] = []
        self.ended = False
        self._command = command
        self._directory = directory
        self._timeout = timeout
        self._hardware = hardware
        self._systemd = systemd
        self._show = show
        self._status: int | None = None
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        write_job(self.job, self._command, self._directory)
        if self._systemd:
            (self.job / "systemd").touch()
        monitor, port = socket.socketpair()
        with (self.job / "qemu.log").open("wb") as errors, monitor, port:
            self._qemu = subprocess.Popen(
                [
                    *("timeout", "--kill-after=5", str(self._timeout)),
                    *qemu_command(self.job),
                    # a file, since a stdio channel counts as closed as soon as its stdin is at its end
                    *("-device", "virtio-serial-pci", "-chardev", "file,id=output,path=/dev/fd/1"),
                    *("-device", "virtserialport,chardev=output,name=e2e.output"),
                    # a socket from QEMU's monitor to a port of the guest
                    *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}"),
                    *("-mon", "chardev=monitor,mode=control"),
                    *("-chardev", f"socket,id=port,fd={port.fileno()}"),
                    *("-device", "virtserialport,chardev=port,name=e2e.monitor"),
                    *("-chardev", f"file,id=console,path={_quoted(self.job / 'console.log')}"),
                    *("-serial", "chardev:console"),
                    *self._hardware,
                ],
                cwd=self.job,
                pass_fds=(monitor.fileno(), port.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._reader.join()

    def kill(self) -> None:
        """Power it off, if it is on."""
        self._qemu.terminate()

    def _read(self) -> None:
        """Collect the lines until the machine is off; output.log has their time since the start."""
        start = time.monotonic()
        assert self._qemu.stdout is not None
        with self._qemu.stdout as output, (self.job / "output.log").open("w", buffering=1) as log:
            for line in output:
                log.write(f"{time.monotonic() - start:6.1f}  {line}")
                if self._show is not None:
                    self._show(line)
                if status := _STATUS.search(line.rstrip()):
                    self._status = int(status[1])
                with self._news:
                    self.lines.append(line.rstrip("\r\n"))
                    self._news.notify_all()
        self._qemu.wait()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def wait_for(self, wanted: Callable[[str], bool]) -> str | None:
        """The first line that is `wanted`, once the guest prints it; None if the machine stops first."""
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if wanted(line):
                        return line
                seen = len(self.lines)
                if self.ended:
                    return None
                self._news.wait()

    def wait(self) -> int:
        """The command's exit status once the machine is off, or TIMED_OUT, or DIED."""
        self._reader.join()
        if self._status is not None:
            return self._status
        return TIMED_OUT if self._qemu.returncode in (TIMED_OUT, 128 + 9, -9) else DIED


def write_job(job: Path, command: Sequence[str], directory: Path) -> None:
    """Write a new job directory, which initramfs.sh and guest_init.sh read as /run/e2e."""
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)
    (job / "init").write_text(str(VM / "guest_init.sh"))
    (job / "python").write_text(sys.executable)
    (job / "packages").write_text(sysconfig.get_path("purelib"))
    (job / "pth").write_text(f"{VM.parents[2]}\n")
    (job / "command").write_text(f"cd {shlex.quote(str(directory))} && exec {shlex.join(command)}\n")


def qemu_command(job: Path) -> list[str]:
    """QEMU's command line without its serial port and output channel.  Raises `PrepareError`."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise PrepareError("no qemu-system-x86_64: `make e2e-deps` installs Debian's qemu-system-x86")
    image = prepare()
    # thread=single: with a thread per processor, one may execute an instruction that the other is patching
    # ("Oops: int3").  Without erms: with it the kernel copies and clears with `rep movsb`, a byte at a time
    # in the emulator.
    command = [qemu, "-accel", "tcg,thread=single", "-machine", "q35", "-cpu", "max,-erms", "-smp", "2"]
    command += ["-m", "1024", "-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    # norandmaps: new processes at the same addresses reuse the emulator's translations
    options = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr norandmaps"
    # The HPET has the host's time.  The TSC is calibrated during the boot, and was wrong by a factor of 2.6
    # on a busy host: all timeouts were too short.  tsc=reliable: disables the watchdog.
    options += " clocksource=hpet tsc=reliable"
    # The kernel checks the timer, and panics if the emulator on a busy host delivers too few ticks.
    options += " no_timer_check"
    # Module parameters: two ports for gadgets, each on a high-speed and on a super-speed bus; no delay for a
    # disk to spin up.
    options += " dummy_hcd.num=2 dummy_hcd.is_super_speed=1 usb-storage.delay_use=0"
    command += ["-append", options]
    shares = (("host", Path("/"), ",readonly=on"), ("layer", image.layer, ",readonly=on"), ("job", job, ""))
    for tag, path, more in shares:
        share = f"local,path={_quoted(path)},mount_tag={tag},security_model=none,multidevs=remap{more}"
        command += ["-virtfs", share]
    return command


def _quoted(path: Path) -> str:
    """`path` in a QEMU option, where commas are doubled."""
    return str(path).replace(",", ",,")


def tail(path: Path, lines: int, noise: re.Pattern[str] | None = None) -> str:
    """The last `lines` of a log without `noise`, or a note if it is missing or empty."""
    try:
        text = path.read_text(errors="replace").replace("\r", "")
    except FileNotFoundError:
        return f"(no {path.name})"
    told = [line for line in text.splitlines() if noise is None or not noise.search(line)]
    return "\n".join(told[-lines:]) or f"({path.name} is empty)"
