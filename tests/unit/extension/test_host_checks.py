"""Checks of the host: rights, libusb, hotplug, launchd, macOS."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import usb1

from tests.unit.extension.healthy_daemon import (
    FakeDiscovery,
    FakeHotplug,
    FakeManager,
    FakeServer,
    binding,
    child,
    device,
    finding,
    findings,
    linux,
    mac,
    make_context,
    shared_device,
)
from usbipd import launchd, privileges
from usbipd.errors import UsbipdError
from usbipd.extension.host_checks import (
    check_confinement,
    check_devices,
    check_hotplug,
    check_launchd,
    check_libusb,
    check_macos,
    check_power,
    check_rights,
)
from usbipd.ipc.control_messages import CheckState
from usbipd.ipc.row import Role
from usbipd.privileges import RunAs
from usbipd.usb.discovery import HUB
from usbipd.usb.libusb_version import log_loaded

USBIPD = RunAs(user="usbipd", uid=990, gid=990)
AS_NOBODY = RunAs(user="nobody", uid=65534, gid=65534)


@pytest.fixture
def no_such_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "DEFAULT_USER", "no-such-user")


def test_rights_of_root() -> None:
    found = finding(check_rights, make_context(run_as=USBIPD))
    assert found.state is CheckState.OK
    assert "as usbipd" in found.message


def test_rights_of_an_ordinary_user() -> None:
    found = finding(check_rights, make_context(host=linux(uid=54321)))
    assert found.state is CheckState.WARNING
    assert "runs as 54321" in found.message
    assert any("as root, with sudo" in step for step in found.steps)


def test_rights_without_the_usual_user(no_such_user: None) -> None:
    context = make_context(
        run_as=AS_NOBODY,
        server=FakeServer(child=child(Role.SERVER, user="nobody")),
        manager=FakeManager({}),
    )
    found = finding(check_rights, context)
    assert found.state is CheckState.WARNING
    assert "useradd" in found.steps[0]
    assert "no-such-user" in found.steps[0]


def test_rights_without_the_usual_user_on_a_mac(no_such_user: None) -> None:
    context = make_context(
        host=mac(), run_as=AS_NOBODY, server=FakeServer(child=None), manager=FakeManager(shared_devices={})
    )
    steps = finding(check_rights, context).steps
    assert any("sysadminctl -addUser no-such-user" in step for step in steps)
    assert not any("useradd" in step for step in steps)


def test_rights_nobody_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """If our usual user exists, `user = "nobody"` in the configuration is deliberate."""
    monkeypatch.setattr(privileges, "DEFAULT_USER", "root")
    context = make_context(
        run_as=AS_NOBODY, server=FakeServer(child=None), manager=FakeManager(shared_devices={})
    )
    assert finding(check_rights, context).state is CheckState.OK


def test_rights_of_a_child_that_is_still_root() -> None:
    server, worker = child(Role.SERVER, user="root"), child(busid="1-2", user="root")
    server.run_as, worker.run_as = USBIPD, RunAs(user="65537", uid=65537, gid=65537)
    context = make_context(
        run_as=USBIPD,
        server=FakeServer(child=server),
        manager=FakeManager(shared_devices={"1-2": shared_device(worker=worker)}),
    )
    found = findings(check_rights, context)
    assert [each.state for each in found] == [CheckState.FAILED, CheckState.FAILED]
    assert found[0].message.startswith("server[")
    assert found[1].message.endswith("1-2 runs as root instead of 65537")


def test_rights_of_workers_configured_to_run_as_root() -> None:
    context = make_context(
        host=mac(),
        run_as=USBIPD,
        confine="off",
        manager=FakeManager(shared_devices={"1-2": shared_device(worker=child(busid="1-2", user="root"))}),
    )
    found = finding(check_rights, context)
    assert found.state is CheckState.WARNING
    assert found.message.startswith('workers run as root (confine = "off")')
    assert findings(check_confinement, context) == []


def test_confinement_that_lacks_nothing() -> None:
    assert finding(check_confinement, make_context()).state is CheckState.OK


def test_confinement_reports_each_lack_once() -> None:
    workers = {busid: child(busid=busid) for busid in ("1-1", "1-2", "1-3")}
    workers["1-1"].lacks = workers["1-2"].lacks = "this Mac refuses the profile"
    server = child(Role.SERVER)
    server.lacks = "this kernel has no filter"
    context = make_context(
        server=FakeServer(child=server),
        manager=FakeManager(
            shared_devices={busid: shared_device(worker=worker) for busid, worker in workers.items()}
        ),
    )
    found = findings(check_confinement, context)
    assert [each.state for each in found] == [CheckState.WARNING, CheckState.WARNING]
    assert found[0].message == f"server[{os.getpid()}]: this kernel has no filter"
    assert found[1].message == (
        f"worker[{os.getpid()}] 1-1, worker[{os.getpid()}] 1-2: this Mac refuses the profile"
    )


def libusb(monkeypatch: pytest.MonkeyPatch, *version: int, rc: bytes = b"") -> None:
    major, minor, micro = version
    found = SimpleNamespace(major=major, minor=minor, micro=micro, rc=rc)
    monkeypatch.setattr(usb1, "getVersion", lambda: found)


def test_libusb_of_this_host() -> None:
    assert finding(check_libusb, make_context()).state is CheckState.OK


def test_libusb_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    libusb(monkeypatch, 1, 0, 25)
    found = finding(check_libusb, make_context())
    assert found.state is CheckState.FAILED
    assert "1.0.25" in found.message
    assert found.steps[-1] == "Restart the daemon."


@pytest.mark.parametrize(
    ("micro", "rc", "state", "said"),
    [
        (29, b"", CheckState.WARNING, "libusb 1.0.29: it has known faults on macOS that 1.0.30 fixes"),
        (30, b"", CheckState.WARNING, "libusb 1.0.30: it is not usbipd's own build"),
        (30, b"-rc1", CheckState.WARNING, "libusb 1.0.30-rc1: it is not usbipd's own build"),
        (30, b"-usbipd2", CheckState.OK, "libusb 1.0.30-usbipd2"),
    ],
)
def test_libusb_on_a_mac(
    monkeypatch: pytest.MonkeyPatch, micro: int, rc: bytes, state: CheckState, said: str
) -> None:
    libusb(monkeypatch, 1, 0, micro, rc=rc)
    found = finding(check_libusb, make_context(host=mac()))
    assert found.state is state
    assert found.message.startswith(said)
    libusb(monkeypatch, 1, 0, micro, rc=rc)
    assert finding(check_libusb, make_context()).state is CheckState.OK, "on Linux it has no patches"


@pytest.mark.parametrize(
    ("rc", "level", "said"),
    [
        (b"", "WARNING", "libusb 1.0.30: it is not usbipd's own build"),
        (b"-usbipd2", "INFO", "libusb 1.0.30-usbipd2"),
    ],
)
def test_the_log_names_the_libusb_of_a_mac(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rc: bytes, level: str, said: str
) -> None:
    libusb(monkeypatch, 1, 0, 30, rc=rc)
    with caplog.at_level("INFO"):
        log_loaded()
    [line] = caplog.records
    assert line.levelname == level
    assert line.getMessage().startswith(said)


def test_devices() -> None:
    manager = FakeManager(devices=[device("1-2"), device("1-3"), device("240-1", simulated=True)])
    found = finding(check_devices, make_context(manager=manager))
    assert found.state is CheckState.OK
    assert found.message == "real devices that could be shared: 2"


def test_devices_of_a_system_that_does_not_answer() -> None:
    problem = "the kernel does not answer about 1-3"
    found = finding(check_devices, make_context(discovery=FakeDiscovery(problem)))
    assert (found.state, found.message) == (CheckState.WARNING, problem)


def test_a_device_that_cannot_be_shared_is_named() -> None:
    left_out = {
        "1-1": UsbipdError(
            "usbfs cannot claim interface 70", code="unusable-descriptors", advice="try usbip-host"
        ),
        "1-2": HUB,
        "1-3": UsbipdError("it is imported", code="imported"),
    }
    found = finding(check_devices, make_context(discovery=FakeDiscovery(left_out=left_out)))
    assert found.state is CheckState.WARNING
    assert found.message == "1-1 cannot be shared: usbfs cannot claim interface 70"
    assert found.steps == ("Try usbip-host",)


def test_devices_that_cannot_be_listed() -> None:
    manager = FakeManager(error=UsbipdError("sysfs is not mounted"))
    with pytest.raises(UsbipdError, match="not mounted"):
        findings(check_devices, make_context(manager=manager))


def test_devices_where_all_are_simulated() -> None:
    assert findings(check_devices, make_context(discovery=None)) == []


def test_hotplug() -> None:
    assert finding(check_hotplug, make_context()).state is CheckState.OK
    problem = "hotplug does not work here, so devices are looked for every two seconds"
    found = finding(check_hotplug, make_context(hotplug=FakeHotplug(problem)))
    assert (found.state, found.message) == (CheckState.WARNING, problem)


def test_hotplug_of_simulated_devices_only() -> None:
    assert findings(check_hotplug, make_context(hotplug=None)) == []


def test_power() -> None:
    assert findings(check_power, make_context()) == []
    assert finding(check_power, make_context(power=FakeHotplug())).state is CheckState.OK
    found = finding(check_power, make_context(power=FakeHotplug("macOS does not tell when it sleeps")))
    assert (found.state, found.message) == (CheckState.WARNING, "macOS does not tell when it sleeps")


JOB = "org.usbipd.extension.plist"


def launchctl(directory: Path, script: str) -> Path:
    """A launchctl that runs `script`."""
    program = directory / "launchctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def job(directory: Path) -> Path:
    path = directory / JOB
    path.touch()
    return path


def test_no_launchd_here() -> None:
    assert findings(check_launchd, make_context()) == []


def test_launchd_has_the_job(tmp_path: Path) -> None:
    script = '[ "$*" = "print system/org.usbipd.extension" ] || exit 64; echo state = disabled; exit 0'
    host = mac(launch_daemon=job(tmp_path), launchctl=launchctl(tmp_path, script))
    assert finding(check_launchd, make_context(host=host)).state is CheckState.OK, "its output is ignored"


def test_launchd_does_not_have_the_job(tmp_path: Path) -> None:
    host = mac(launch_daemon=job(tmp_path), launchctl=launchctl(tmp_path, "exit 113"))
    found = finding(check_launchd, make_context(host=host))
    assert found.state is CheckState.FAILED
    assert "exit code 113" in found.message
    assert "System Settings > General > Login Items & Extensions" in found.steps[0]
    assert any("launchctl enable system/org.usbipd.extension" in step for step in found.steps)
    assert any(f"launchctl bootstrap system {tmp_path / JOB}" in step for step in found.steps)


def test_launchd_job_not_installed(tmp_path: Path) -> None:
    found = finding(check_launchd, make_context(host=mac(launch_daemon=tmp_path / JOB)))
    assert found.state is CheckState.WARNING
    assert str(tmp_path / JOB) in found.message


def test_launchctl_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchd, "TIMEOUT", 0.1)
    pid = tmp_path / "pid"
    host = mac(launch_daemon=job(tmp_path), launchctl=launchctl(tmp_path, f"echo $$ >{pid}; exec sleep 1000"))
    found = finding(check_launchd, make_context(host=host))
    assert found.state is CheckState.FAILED
    if pid.exists():  # else it was killed before it wrote its pid
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_macos_check_does_not_apply_elsewhere() -> None:
    assert findings(check_macos, make_context()) == []


def test_macos_without_known_problems() -> None:
    assert finding(check_macos, make_context(host=mac())).state is CheckState.OK


FULL_SPEED = FakeManager(
    devices=[device("1-2", speed="full"), device("1-3"), device("240-1", simulated=True, speed="full")]
)


def test_macos_that_may_crash() -> None:
    found = finding(check_macos, make_context(host=mac(mac_version="26.3.1"), manager=FULL_SPEED))
    assert found.state is CheckState.WARNING
    assert "1-2" in found.message
    assert "1-3" not in found.message
    assert "240-1" not in found.message


@pytest.mark.parametrize(
    ("version", "manager"), [("26.3.1", FakeManager()), ("26.4", FULL_SPEED)], ids=["no such device", "newer"]
)
def test_macos_that_does_not_crash(version: str, manager: FakeManager) -> None:
    assert (
        finding(check_macos, make_context(host=mac(mac_version=version), manager=manager)).state
        is CheckState.OK
    )


def test_an_accessory_that_may_not_be_allowed() -> None:
    """Apple silicon hides a device until a user allows it; it looks unplugged."""
    manager = FakeManager(bindings=[binding(), binding("1-4", devices=[])])
    found = finding(check_macos, make_context(host=mac(), manager=manager))
    assert found.state is CheckState.WARNING
    assert any("Allow accessor" in step for step in found.steps)
    assert (
        finding(check_macos, make_context(host=mac(machine="x86_64"), manager=manager)).state is CheckState.OK
    )
