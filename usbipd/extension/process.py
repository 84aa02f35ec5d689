"""The extension's main: starts the daemon, prints what is shared, and shuts it down.

Start: runtime directory, control socket (a second daemon fails here), store, server, claims.  Shutdown, on
SIGINT, SIGTERM or SIGHUP: stop listening, release all devices, remove the runtime files; in less than two
seconds, on macOS as long as it takes to enumerate devices again (usb_stack.py).  SIGUSR1 sets the log level
of all processes to debug, SIGUSR2 to the configured one.  If the log is a file, SIGHUP only reopens it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from usbipd import __version__, frozen, log, paths, privileges
from usbipd.addresses import parse_listen
from usbipd.client_commands import address_for_clients, attach, usbip
from usbipd.config import ServerConfig
from usbipd.errors import UsbipdError
from usbipd.extension import service_manager
from usbipd.extension.bindings import Bindings
from usbipd.extension.control import Answers, IPCHandler
from usbipd.extension.device import ClaimedDevice
from usbipd.extension.event_recorder import EventRecorder
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.reservations import Reservations
from usbipd.extension.server_supervisor import ServerSupervisor
from usbipd.extension.status_monitor import StatusMonitor
from usbipd.extension.store import Store
from usbipd.extension.supervisor import Supervisor, seal_descriptors
from usbipd.extension.usb_stack import host_stack
from usbipd.extension.worker_confinement import WorkerConfinement
from usbipd.host_addresses import host_addresses
from usbipd.host_needs import check_host
from usbipd.ipc.children import Confinement, ServeParameters
from usbipd.ipc.control_messages import HistoryEvent
from usbipd.log_file import STDERR, LogFile
from usbipd.simulated.bus import SimulatedBus
from usbipd.simulated.spec import SimulatedSpec
from usbipd.spelling import Spelling
from usbipd.usb.discovery import DeviceDiscovery, DeviceSource
from usbipd.usb.host import host_devices, host_ownership
from usbipd.usb.hotplug import Hotplug
from usbipd.usb.libusb_version import log_loaded

if TYPE_CHECKING:
    from usbipd.usb.power import PowerWatch

_LOG: Final = logging.getLogger(__name__)


def run(
    config: ServerConfig,
    simulate: Sequence[SimulatedSpec],
    with_real: bool,
    socket_path: Path,
    state_directory: Path | None,
) -> int:
    """Run the extension until a signal ends it; returns the exit code.

    `simulate` are the simulated devices to share, `with_real` offers this host's devices too; bindings and
    history are stored in `state_directory`, or (None) in memory.  Raises `UsbipdError` if the daemon does not
    start; nothing is left behind then.
    """
    if frozen.IS_FROZEN:
        frozen.load_libusb()
    seal_descriptors()
    check_host(config)
    files = paths.RuntimeFiles(socket_path.absolute())
    state_directory = None if state_directory is None else state_directory.absolute()
    log_file = LogFile(None if config.log_to in log.DESTINATIONS else Path(config.log_to))
    with log_file:
        log.configure("extension", level=config.log_level, to=_destination(config))
        errors = log.ErrorCounter()
        logging.getLogger().addHandler(errors)
        if with_real and sys.platform == "darwin":
            log_loaded()
        extension = Extension(
            config, simulate, with_real, files, state_directory, errors, log_file, Spelling.here()
        )
        try:
            return asyncio.run(extension.run())
        finally:
            log.tell_left_out()  # while stderr is the log


def _destination(config: ServerConfig) -> str:
    """Where the daemon's processes log to; a log file is their stderr."""
    return config.log_to if config.log_to in log.DESTINATIONS else "stderr"


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts that exist once the store is open."""

    manager: SystemExtensionManager
    server: ServerSupervisor
    hotplug: Hotplug | None
    power: "PowerWatch | None"


class Extension:
    """Starts and stops the parts of the process."""

    def __init__(
        self,
        config: ServerConfig,
        simulate: Sequence[SimulatedSpec],
        with_real: bool,
        files: paths.RuntimeFiles,
        state_directory: Path | None,
        errors: log.ErrorCounter,
        log_file: LogFile,
        spelling: Spelling,
    ) -> None:
        self._config = config
        self._simulate = simulate
        self._with_real = with_real
        self._files = files
        self._state_directory = state_directory
        self._errors = errors
        self._log_file = log_file
        self._spelling = spelling
        self._run_as = privileges.find_run_as(config.user)
        self._stack = host_stack()
        self._supervisor = Supervisor(self._stack.end_time)
        self._stopped = asyncio.Event()
        self._parts: _Parts | None = None

    async def run(self) -> int:
        """Start, run until a signal, shut down.  Raises `UsbipdError` if it does not start."""
        log.use_timer(asyncio.get_running_loop())
        self._handle_signals()
        self._supervisor.start()
        made = self._files.prepare()
        control = IPCHandler(self._files.control_socket, self._run_as, self._config.uids)
        was_killed = control.start_listener()  # from here on the socket's path is ours
        # daemon(7): do not keep a file system busy; all paths are absolute by now
        os.chdir("/")
        async with contextlib.AsyncExitStack() as stack:
            # a killed extension leaves its directory and its socket behind
            stack.callback(self._files.remove, made=made or was_killed)
            stack.callback(control.close)
            if self._log_file.path is not None:
                self._files.write_pid()
            store = await Store.open(self._state_directory)
            stack.push_async_callback(store.close)
            recorder = EventRecorder(store)
            parts = self._parts = self._build(store, recorder, control)
            stack.push_async_callback(self._stop, parts, control)
            await store.end_last_run()
            recorder.record(HistoryEvent.STARTED, reason=f"version {__version__}")
            stopped = asyncio.create_task(self._stopped.wait())
            started = asyncio.create_task(self._start(parts, was_killed))
            try:
                await asyncio.wait({stopped, started}, return_when=asyncio.FIRST_COMPLETED)
                if started.done():
                    started.result()
                    await stopped
                _LOG.info("shutting down")
            finally:
                service_manager.notify(service_manager.STOPPING)
                started.cancel()
                await asyncio.wait({started})
                recorder.record(HistoryEvent.STOPPED)
        return 0

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopped.set)
        hung_up = self._stopped.set if self._log_file.path is None else self._reopen_log
        loop.add_signal_handler(signal.SIGHUP, hung_up)
        loop.add_signal_handler(signal.SIGUSR1, self._set_log_level, "debug")
        loop.add_signal_handler(signal.SIGUSR2, self._set_log_level, self._config.log_level)

    def _build(self, store: Store, recorder: EventRecorder, control: IPCHandler) -> _Parts:
        config, limits = self._config, self._config.limits
        sources: list[DeviceSource] = [SimulatedBus(self._simulate)]
        discovery = None
        if self._with_real:
            discovery = DeviceDiscovery(host_devices(offer_imported=config.offer_imported))
            sources.append(discovery)
        manager = SystemExtensionManager(
            sources,
            self._supervisor,
            host_ownership(),
            store,
            Bindings(store, config.access),
            recorder,
            confinement=WorkerConfinement(
                None if self._run_as is None else config.uids, self._files.chroot, config.confine
            ),
            stack=self._stack,
            with_real=self._with_real,
            transfer_budget=limits.transfer_budget,
            device_memory=limits.device_memory,
            log_level=config.log_level,
            log_to=_destination(config),
        )
        if discovery is not None:
            discovery.notify(manager.devices_changed)
        server = ServerSupervisor(
            self._supervisor,
            ServeParameters(
                listen=[str(address) for address in config.addresses],
                allow=list(config.allow),
                max_connections=limits.max_connections,
                max_connections_per_address=limits.max_connections_per_address,
                handshake_timeout=limits.handshake_timeout,
                lost_client_timeout=limits.lost_client_timeout,
                send_buffer=limits.send_buffer,
                confinement=Confinement(
                    run_as=self._run_as,
                    root=None if self._run_as is None else str(self._files.chroot),
                    sandbox="require" if config.confine == "require" else "auto",
                ),
                log_level=config.log_level,
                log_to=_destination(config),
            ),
            manager.offers,
            Reservations(manager.find_for, limits.handshake_timeout),
            recorder,
        )
        hotplug = Hotplug(manager.devices_changed) if self._with_real else None
        power = host_power(manager.devices_changed) if self._with_real else None
        status_monitor = StatusMonitor(
            manager,
            server,
            store,
            discovery,
            hotplug,
            power,
            self._errors,
            self._files.control_socket,
            run_as=self._run_as,
            confine=config.confine,
            access=[table.rule for table in config.access],
        )
        control.serve(Answers(manager, status_monitor, recorder))
        return _Parts(manager, server, hotplug, power)

    async def _start(self, parts: _Parts, was_killed: bool) -> None:
        self._files.prepare_chroot()
        # first: if its port is in use, no driver is detached
        await parts.server.start(after_a_kill=was_killed)
        if parts.hotplug is not None:
            parts.hotplug.start()  # before the devices are listed, so that none is missed
        if parts.power is not None:
            parts.power.start()
        await parts.manager.start()
        said = announcement(parts.server.listening, parts.manager.get_claimed_devices())
        _say(self._spelling.spell(said))
        listening = f"listens on {', '.join(parts.server.listening)}"
        service_manager.notify(service_manager.READY, STATUS=listening)

    async def _stop(self, parts: _Parts, control: IPCHandler) -> None:
        await asyncio.gather(parts.server.stop(), parts.manager.stop())
        control.close()  # now: waiting commands have their answers, and the store is still open
        if parts.hotplug is not None:
            await parts.hotplug.stop()
        if parts.power is not None:
            await parts.power.stop()

    def _reopen_log(self) -> None:
        try:
            self._log_file.reopen()
        except UsbipdError as error:
            _LOG.error("cannot reopen the log: %s", error)
            return
        self._supervisor.hand_log_file(STDERR)
        _LOG.info("the log was reopened: %s", self._log_file.path)

    def _set_log_level(self, level: str) -> None:
        log.set_level(level)
        _LOG.info("log level %s", level)
        if self._parts is not None:
            self._parts.manager.set_log_level(level)
            self._parts.server.set_log_level(level)


def host_power(on_wake: Callable[[], None]) -> "PowerWatch | None":
    """Calls `on_wake` after sleep; None on systems where hotplug events are enough."""
    if sys.platform == "darwin":
        from usbipd.usb.power import PowerWatch  # its compiled part exists on macOS only

        return PowerWatch(on_wake)
    return None


def announcement(listening: Sequence[str], claimed: Iterable[ClaimedDevice]) -> str:
    """The text for the terminal: what is shared, and how a client attaches it."""
    shared = sorted(claimed, key=lambda device: device.device_id)
    lines = [f"usbipd {__version__} listens on {', '.join(listening)}."]
    if not shared:
        lines += ["Nothing is shared yet: see `usbipd list`, then `usbipd bind DEVICE`."]
    else:
        lines += ["Shared:"]
        for device in shared:
            ids = f"{device.vendor_id:04x}:{device.product_id:04x}"
            lines += [f"  {device.bus_id:<7} {ids}  {device.product_string or 'unnamed device'}"]
        address = parse_listen(listening[0])
        host = address_for_clients(address, host_addresses())
        lines += ["On the client:", "  sudo modprobe vhci-hcd", f"  {usbip(address.port)} list -r {host}"]
        lines += [f"  {attach(host, address.port, device.bus_id)}" for device in shared]
    return "\n".join(lines)


def _say(text: str) -> None:
    """Print `text` on the terminal; a closed stdout is no failure, now or at exit."""
    try:
        print(text, flush=True)
    except OSError:  # discard what is left in the buffer
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
