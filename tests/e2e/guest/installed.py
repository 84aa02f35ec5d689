"""The installation of `make install`, with a real device, as a systemd service.  Runs in the guest.

systemd is process 1 here, so that the unit's limits apply as on any host: the test fails if they forbid what
the daemon needs.
"""

import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from tests.e2e.guest import client, confined
from tests.e2e.guest.command import ask, call, check_doctor, wait_for_state
from tests.e2e.guest.monitor import Monitor
from tests.e2e.guest.scenario import Scenario, check
from tests.e2e.guest.server import LOG, credentials
from tests.e2e.guest.system import JOB, run, wait_for
from tests.e2e.guest.usb import UsbDevice, wait_for_driver, wait_until_plugged

HARDWARE: Final = ("-device", "qemu-xhci,id=usb,addr=0x10")
"""Added hardware, see `Machine`."""

ROOT: Final = Path(__file__).resolve().parents[3]
PREFIX: Final = Path("/usr/local")
USBIPD: Final = PREFIX / "bin/usbipd"
EXTENSION: Final = PREFIX / "sbin/usbipd-ext"
CGROUP: Final = Path("/sys/fs/cgroup/system.slice/usbipd.service")
DROP_IN: Final = Path("/run/systemd/system/usbipd.service.d/log.conf")
NOTIFY_SOCKET: Final = "/run/systemd/notify"
MOUNT_POINT: Final = Path("/run/media/stick")
ORDINARY_USER: Final = 65534
"""An ordinary user; the stick is mounted in its directory."""

CONTROLLER: Final = "0000:00:10.0"
STICK: Final = "46f4:0001"  # QEMU, hw/usb/dev-storage-classic.c
IMAGE: Final = JOB / "stick.img"
SIZE: Final = 4 * 1024 * 1024

CAPABILITIES: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
"""include/uapi/linux/capability.h"""
SECCOMP_FILTER: Final = "2"  # include/uapi/linux/seccomp.h, SECCOMP_MODE_FILTER

SCENARIO: Final = Scenario()
step = SCENARIO.step()


class World:
    """State passed between steps."""

    before: set[Path]
    stick: UsbDevice


WORLD: Final = World()


@step
def make_installs_it() -> None:
    WORLD.before = set(PREFIX.rglob("*"))
    run("make", "-C", ROOT, "install")
    version = run(EXTENSION, "--version")
    check(version.startswith("usbipd-ext "), f"its version is {version}")
    run("systemd-sysusers", PREFIX / "lib/sysusers.d/usbipd.conf")


@step
def systemd_starts_it_and_receives_ready() -> None:
    run("modprobe", "xhci-pci")
    DROP_IN.parent.mkdir(parents=True)
    # this machine has no journal
    DROP_IN.write_text(f"[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", "--now", "usbipd")
    check(_property("ActiveState") == "active", "it is not active")
    said = _property("StatusText")
    check(said == "listens on 127.0.0.1:3240", f"its status is {said!r}")


@step
def stock_client_reads_a_device() -> None:
    with IMAGE.open("wb") as blocks:
        blocks.write(os.urandom(SIZE))
    file = {"driver": "file", "filename": IMAGE.name}
    _monitor().execute("blockdev-add", driver="raw", node_name="stick", file=file)
    _monitor().execute("device_add", driver="usb-storage", id="stick", drive="stick", bus="usb.0", port="1")
    WORLD.stick = wait_until_plugged(CONTROLLER, STICK)
    wait_for_driver(WORLD.stick, "usb-storage")
    wait_for("the device in the list", lambda: WORLD.stick.busid in run(USBIPD, "list"))
    run(USBIPD, "bind", "--busid", WORLD.stick.busid)
    _check_data()


@step
def processes_are_confined() -> None:
    expected = sum(1 << number for number in CAPABILITIES.values())
    for process in _processes():
        role, pid = process["role"], process["pid"]
        facts = credentials(pid)
        check(facts["NoNewPrivs"] == "1", f"{role}: may get new privileges")
        check(facts["Seccomp"] == SECCOMP_FILTER, f"{role}: every system call is allowed")
        check(int(facts["CapBnd"], 16) == expected, f"{role}: is bounded by {facts['CapBnd']}")
        held = int(facts["CapPrm"], 16)
        check(held == (expected if role == "extension" else 0), f"{role}: has capabilities {held:x}")


@step
def server_and_worker_are_confined_as_seen_from_outside() -> None:
    confined.check_from_outside(_processes())


@step
def hostile_code_is_denied_everything() -> None:
    confined.check_from_inside(Path(_property("FragmentPath")), _processes())


@step
def daemon_runs_in_the_mount_namespace_of_the_host() -> None:
    [extension] = [process["pid"] for process in _processes() if process["role"] == "extension"]
    ours, its = (Path(f"/proc/{pid}/ns/mnt").readlink() for pid in ("self", extension))
    check(ours == its, f"the extension is in mount namespace {its}, the host in {ours}")


@step
def systemd_accepts_messages_of_the_main_process_only() -> None:
    """A compromised worker runs as its user, in the control group of the service."""
    main, status = _property("MainPID"), _property("StatusText")
    _tell_systemd("MAINPID={pid}\nSTOPPING=1\nSTATUS=of a worker", "usbipd")
    told = (_property("MainPID"), _property("ActiveState"), _property("StatusText"))
    check(told == (main, "active", status), f"after a worker's message systemd has {told}")
    _tell_systemd("STATUS=of root", "root", int(main))
    check(_property("StatusText") == "of root", "systemd ignores the main process")


def _tell_systemd(message: str, user: str, speaker: int | None = None) -> None:
    """Send `message` from a process of the service, as `user`, on behalf of `speaker` or itself.  The process
    lives until systemd has read it: sd_notify_barrier(3)."""
    account = pwd.getpwnam(user)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (CGROUP / "cgroup.procs").write_text(str(os.getpid()))
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            credentials = struct.pack("=iII", speaker or os.getpid(), account.pw_uid, account.pw_gid)
            ends, end = os.pipe()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.connect(NOTIFY_SOCKET)
                manager.sendmsg(
                    [message.format(pid=os.getpid()).encode()],
                    [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)],
                )
                socket.send_fds(manager, [b"BARRIER=1"], [end])
            os.close(end)
            os.read(ends, 1)
            code = 0
        finally:
            os._exit(code)
    check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, f"cannot send {message!r} to systemd")


@step
def doctor_finds_no_fault() -> None:
    check_doctor()


@step
def restart_keeps_the_claim() -> None:
    worker = _worker()
    run("systemctl", "restart", "usbipd")
    # READY follows once everything is claimed: no wait
    check(_worker() not in (None, worker), "after the restart no new worker has the device")
    status = run(EXTENSION, "--status")
    check(WORLD.stick.busid in status, "the status does not show the device")
    _check_data()


@step
def systemd_restarts_a_killed_daemon() -> None:
    worker = _worker()
    os.kill(int(_property("MainPID")), signal.SIGKILL)
    wait_for("a restart by systemd", lambda: _property("NRestarts") == "1")
    wait_for("an active service", lambda: _property("ActiveState") == "active")
    check(_worker() not in (None, worker), "after the restart no new worker has the device")
    _check_data()


@step
def only_necessary_devices_can_be_opened() -> None:
    ask("unbind", "--busid", WORLD.stick.busid)
    wait_for_driver(WORLD.stick, "usb-storage")
    disk = wait_for("a block device of the stick", WORLD.stick.block_device)
    for path, flags, expected in (
        (WORLD.stick.node, os.O_RDWR, True),
        (disk, os.O_RDONLY, True),
        (disk, os.O_RDWR, False),
        (Path("/dev/kmsg"), os.O_RDONLY, False),
        (Path("/dev/null"), os.O_RDWR, True),
    ):
        check(_may_open(path, flags) == expected, f"{path} can be opened by {flags}: {not expected}")


def _may_open(path: Path, flags: int) -> bool:
    """Whether the service may open a device: a process joins its control group and tries."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            (CGROUP / "cgroup.procs").write_text(str(os.getpid()))
            code = 1
            os.open(path, flags)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    check(code in (0, 1), "a process cannot join the service")
    return code == 0


@step
def forced_bind_unmounts_the_hosts_mounts() -> None:
    disk = wait_for("a block device of the stick", WORLD.stick.block_device)
    run("mkfs.ext4", "-q", "-F", disk)
    MOUNT_POINT.mkdir(parents=True)
    os.chown(MOUNT_POINT.parent, ORDINARY_USER, ORDINARY_USER)
    MOUNT_POINT.parent.chmod(0o700)
    run("mount", "-t", "ext4", disk, MOUNT_POINT)
    refused = call("bind", "--json", "--busid", WORLD.stick.busid)
    check(refused.code == 1 and MOUNT_POINT.is_mount(), f"bind of a mounted disk: {refused.stdout}")
    with subprocess.Popen(["/bin/sleep", "1000"], cwd=MOUNT_POINT, user=ORDINARY_USER) as program:
        refused = call("bind", "--force", "--json", "--busid", WORLD.stick.busid)
        program.kill()
    named = f"(pid {program.pid})" in refused.stdout
    check(refused.code == 1 and named, f"{program.pid} uses it, but bind prints: {refused.stdout}")
    run(USBIPD, "bind", "--force", "--busid", WORLD.stick.busid)
    check(not MOUNT_POINT.is_mount(), f"{MOUNT_POINT} is still mounted on the host")
    _check_data()


@step
def nothing_is_unmounted_in_a_separate_namespace() -> None:
    """As a drop-in may configure."""
    drop_in = DROP_IN.with_name("namespace.conf")
    drop_in.write_text("[Service]\nPrivateTmp=yes\n")
    run("systemctl", "daemon-reload")
    ask("unbind", "--busid", WORLD.stick.busid)
    wait_for_driver(WORLD.stick, "usb-storage")
    run("systemctl", "restart", "usbipd")
    disk = wait_for("a block device of the stick", WORLD.stick.block_device)
    run("mount", "-t", "ext4", disk, MOUNT_POINT)
    refused = call("bind", "--force", "--json", "--busid", WORLD.stick.busid)
    told = "private mount namespace" in refused.stdout
    check(refused.code == 1 and told, f"bind --force prints: {refused.stdout}")
    check(MOUNT_POINT.is_mount() and WORLD.stick.driver() == "usb-storage", "the disk was claimed")
    run("umount", MOUNT_POINT)
    run(USBIPD, "bind", "--busid", WORLD.stick.busid)
    drop_in.unlink()
    run("systemctl", "daemon-reload")


@step
def wrong_configuration_is_not_retried() -> None:
    config = Path("/etc/usbipd/usbipd.toml")
    default = config.read_bytes()
    config.write_text("lisen = []\n")
    done = subprocess.run(["systemctl", "restart", "usbipd"], check=False)
    check(done.returncode != 0, "systemd considers it started")
    state = _property("ActiveState")
    check(state == "failed", f"it is {state}")
    config.write_bytes(default)


@step
def stop_releases_the_device_and_uninstall_leaves_nothing() -> None:
    run("systemctl", "start", "usbipd")
    run("systemctl", "disable", "--now", "usbipd")
    wait_for_driver(WORLD.stick, "usb-storage")
    result = _property("Result")
    check(result == "success", f"its result is {result}")
    check(not Path("/run/usbipd").exists(), "/run/usbipd still exists")
    run("make", "-C", ROOT, "uninstall")
    left = sorted(path for path in set(PREFIX.rglob("*")) - WORLD.before if not path.is_dir())
    check(not left, f"files are left: {left}")
    check(not Path("/etc/usbipd").exists(), "the unedited configuration still exists")


def _property(name: str) -> str:
    """A property of the service in systemd."""
    return run("systemctl", "show", "--value", "--property", name, "usbipd").strip()


def _processes() -> list[dict[str, int | str]]:
    processes: list[dict[str, int | str]] = ask("status")["status"]["processes"]
    return processes


def _worker() -> int | None:
    """The pid of the process that holds the device."""
    devices = ask("status")["status"]["devices"]
    return next((each["worker_pid"] for each in devices if each["busid"] == WORLD.stick.busid), None)


def _check_data() -> None:
    """The client must read the stick's data."""
    wait_for_state(WORLD.stick.busid, "shared")
    there = client.attach(WORLD.stick.busid, STICK)
    node = wait_for("a block device of the stick", there.block_device)
    check(node.read_bytes() == IMAGE.read_bytes(), f"{node} differs from the stick's image")
    client.detach(there)


@cache  # one for all steps: QEMU greets only once
def _monitor() -> Monitor:
    return Monitor()


if __name__ == "__main__":
    sys.exit(SCENARIO.run())
