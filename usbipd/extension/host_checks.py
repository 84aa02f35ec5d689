"""Checks of the host: privileges, libusb, launchd and macOS.  Runs in the extension."""

import asyncio
import pwd
from typing import Final

from usbipd import findings, privileges
from usbipd.extension.check_context import CheckContext, Host
from usbipd.extension.supervisor import Child
from usbipd.findings import Finding, failed, ok, steps_of, warning
from usbipd.ipc.control_messages import CheckState
from usbipd.protocol.constants import Speed
from usbipd.usb import libusb_version
from usbipd.usb.daemon_thread import call_in_daemon_thread
from usbipd.usb.discovery import BY_RULE

ISOCHRONOUS_PANIC: Final = "26.3.1"  # https://github.com/libusb/libusb/issues/1762

_START_AS_ROOT: Final = "Start it as root, with sudo or as a service."
_RESTART: Final = "Restart the daemon."


async def check_rights(context: CheckContext) -> list[Finding]:
    """Whether the extension is root, to detach drivers, and no process that handles network data is."""
    if context.host.uid != 0:
        user = privileges.user_name(context.host.uid)
        return [
            warning(
                f"the daemon runs as {user}, not as root: "
                "it can share simulated devices, and real ones that this user can open",
                "Stop this daemon.",
                _START_AS_ROOT,
            )
        ]
    findings = _wrong_users(context)
    user = "root" if context.run_as is None else context.run_as.user
    own = privileges.DEFAULT_USER
    if user == "nobody" and not await asyncio.to_thread(_user_exists, own):
        findings += [
            warning(
                f"user {own} does not exist: the server runs as nobody, as other services do",
                *_steps_to_create_user(context.host),
                _RESTART,
            )
        ]
    if context.confine == "off":
        findings += [
            warning(
                'workers run as root (confine = "off"): an attacker who compromises one controls this host',
                'Remove that line from usbipd.toml if devices work without it: confine = "auto".',
                _RESTART,
            )
        ]
    return findings or [
        ok(f"the daemon runs as root, the server as {user}, each worker under a separate uid")
    ]


def _children(context: CheckContext) -> list[Child]:
    children = [context.server.child, *(device.worker for device in context.manager.shared_devices.values())]
    return [child for child in children if child is not None]


def _wrong_users(context: CheckContext) -> list[Finding]:
    """Children that run as another user than intended."""
    return [
        failed(f"{child.label} runs as {child.user} instead of {child.run_as.user}", _RESTART)
        for child in _children(context)
        if child.run_as is not None and child.user != child.run_as.user
    ]


async def check_confinement(context: CheckContext) -> list[Finding]:
    """Whether server and workers are confined; what the confinement of each lacks."""
    lacking: dict[str, list[str]] = {}
    for child in _children(context):
        if child.lacks is not None:
            lacking.setdefault(child.lacks, []).append(child.label)
    if context.confine == "off" or not lacking:
        return [ok("server and workers are confined")] if context.confine != "off" else []
    return [
        warning(
            f"{', '.join(labels)}: {lacks}",
            "Devices work, but an attacker who compromises such a process can do more than usual.",
            "Report it to the maintainers of usbipd, with the output of `usbipd doctor --report`.",
        )
        for lacks, labels in lacking.items()
    ]


def _user_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _steps_to_create_user(host: Host) -> tuple[str, ...]:
    user = privileges.DEFAULT_USER
    if host.mac_version:
        return (
            "Find a free user id between 200 and 400: `dscl . -list /Users UniqueID`.",
            f"Create the user with it: `sudo sysadminctl -addUser {user} -UID ID -roleAccount`.",
        )
    shell = "/usr/sbin/nologin"
    return (
        f"Create the user: `sudo useradd --system --user-group --no-create-home --shell {shell} {user}`.",
    )


async def check_libusb(context: CheckContext) -> list[Finding]:
    """Whether libusb is present, new enough, and on macOS without known bugs."""
    found = await asyncio.to_thread(findings.check_libusb, _RESTART)
    if found.state is not CheckState.OK or not context.host.mac_version:
        return [found]
    lack = libusb_version.loaded().lacks_on_macos
    if lack is None:
        return [found]
    return [
        warning(
            f"{found.message}: {lack}",
            "Install usbipd's package for macOS, which contains its own libusb.",
            "Or use the newest one: `brew upgrade libusb`.",
            _RESTART,
        )
    ]


async def check_devices(context: CheckContext) -> list[Finding]:
    """Whether the system lists its devices, and which cannot be shared; nothing with simulated ones only."""
    if context.discovery is None:
        return []
    devices = await context.manager.list_devices()
    if context.discovery.problem is not None:
        return [
            warning(
                context.discovery.problem,
                "Wait a few seconds: a driver may still be starting.",
                "If the problem stays, unplug the device that was plugged in last, or that does not work.",
                "See what the kernel reports: `sudo dmesg`.",
            )
        ]
    unusable = [
        warning(f"{busid} cannot be shared: {error.message}", *steps_of(error))
        for busid, error in sorted(context.discovery.left_out.items())
        if error.code not in BY_RULE
    ]
    count = sum(not device.simulated for device in devices)
    return unusable or [ok(f"real devices that could be shared: {count}")]


async def check_hotplug(context: CheckContext) -> list[Finding]:
    """Whether the system sends hotplug events; no finding if only simulated devices are shared."""
    if context.hotplug is None:
        return []
    if context.hotplug.problem is None:
        return [ok("devices are noticed as they are plugged in")]
    return [
        warning(
            context.hotplug.problem,
            "Devices still work: the daemon scans for them regularly and notices them a little later.",
            "For events, run it outside a container with a user namespace (Linux) or with a newer libusb "
            "(macOS), and restart the daemon.",
        )
    ]


async def check_power(context: CheckContext) -> list[Finding]:
    """Whether the system notifies us of wake-up; no finding on systems that need no notification."""
    if context.power is None:
        return []
    if context.power.problem is None:
        return [ok("devices are listed again after sleep")]
    return [
        warning(
            context.power.problem,
            "If a device does not work after sleep, unbind it and bind it again.",
            _RESTART,
        )
    ]


async def check_launchd(context: CheckContext) -> list[Finding]:
    """Whether launchd has the job that starts the extension; no finding on systems without launchd."""
    job = context.host.launch_daemon
    if job is None:
        return []
    return [await call_in_daemon_thread(lambda: findings.check_launchd(job, context.host.launchctl))]


async def check_macos(context: CheckContext) -> list[Finding]:
    """Known problems of this version of macOS and this kind of Mac; no finding on other systems."""
    version = context.host.mac_version
    if not version:
        return []
    findings = []
    if version == ISOCHRONOUS_PANIC:
        findings += await _isochronous_panic(context)
    if context.host.machine == "arm64":
        findings += await _accessories_not_allowed(context)
    return findings or [ok(f"no known problems with macOS {version}")]


async def _isochronous_panic(context: CheckContext) -> list[Finding]:
    devices = await context.manager.list_devices()
    full = [each.busid for each in devices if not each.simulated and each.speed == Speed.FULL.label]
    if not full:
        return []
    return [
        warning(
            f"macOS {ISOCHRONOUS_PANIC} may crash when a full-speed device with isochronous endpoints "
            f"(sound, video) is claimed; full speed here: {', '.join(full)}",
            "Do not bind these devices if they carry sound or video.",
            "Update macOS.",
        )
    ]


async def _accessories_not_allowed(context: CheckContext) -> list[Finding]:
    if all(binding.devices for binding in (await context.manager.survey()).bindings):
        return []
    return [
        warning(
            "a bound device is missing: if it is plugged in, this Mac may not have been allowed to use it",
            'Unlock the Mac and choose Allow where it asks "Allow accessory to connect?".',
            "If it does not ask, unplug the device and plug it in again.",
            'Or change System Settings > Privacy & Security > "Allow accessories to connect".',
        )
    ]
