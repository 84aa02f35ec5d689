"""The extension's main: brings the daemon up, prints what is shared, and takes it down.  Called by the CLI.

Up: runtime directory, control socket (so that a second daemon stops here), server, claims.  Down, on SIGINT,
SIGTERM or SIGHUP: listen no more, give every device back, remove what was made; in less than two seconds.
"""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from usbipd import __version__, log, paths, privileges
from usbipd.config import ListenAddress, ServerConfig, parse_listen
from usbipd.extension.control import IPCHandler
from usbipd.extension.manager import SystemExtensionManager
from usbipd.extension.monitor import StatusMonitor
from usbipd.extension.network import NetworkServer
from usbipd.extension.reservations import Reservations
from usbipd.extension.simulation import SimulatedBus
from usbipd.extension.supervisor import Supervisor, seal_descriptors
from usbipd.ipc.messages import DeviceReport, DeviceState, ServeParameters, SimulatedSpec
from usbipd.protocol.constants import USBIP_PORT
from usbipd.usb.discovery import DeviceDiscovery, DeviceSource
from usbipd.usb.ownership import Ownership

_LOG: Final = logging.getLogger(__name__)


def run(config: ServerConfig, simulate: Sequence[SimulatedSpec], with_real: bool, socket_path: Path) -> int:
    """Be the extension until a signal ends it; the exit code.

    `simulate` are the simulated devices to share, `with_real` offers this host's devices too.  Raises
    `UsbipdError` if the daemon does not come up; nothing is left then.
    """
    log.configure("extension", level=config.log_level)
    seal_descriptors()
    files = paths.RuntimeFiles(socket_path.absolute())
    return asyncio.run(Extension(config, simulate, with_real, files).run())


class Extension:
    """The parts of the process, and their beginning and end."""

    def __init__(
        self,
        config: ServerConfig,
        simulate: Sequence[SimulatedSpec],
        with_real: bool,
        files: paths.RuntimeFiles,
    ) -> None:
        run_as = privileges.find_run_as(config.user)
        errors = log.ErrorCounter()
        logging.getLogger().addHandler(errors)
        sources: list[DeviceSource] = [SimulatedBus(simulate)]
        if with_real:
            sources.append(DeviceDiscovery())
        self._files = files
        self._supervisor = Supervisor()
        self._manager = SystemExtensionManager(
            sources,
            self._supervisor,
            Ownership(),
            run_as=privileges.worker_run_as(run_as),
            transfer_budget=config.limits.transfer_budget,
            log_level=config.log_level,
        )
        limits = config.limits
        self._network = NetworkServer(
            self._supervisor,
            ServeParameters(
                listen=[str(address) for address in config.addresses],
                max_connections=limits.max_connections,
                max_connections_per_address=limits.max_connections_per_address,
                handshake_timeout=limits.handshake_timeout,
                run_as=run_as,
                chroot=None if run_as is None else str(files.chroot),
                log_level=config.log_level,
            ),
            lambda: list(self._manager.claims.values()),
            Reservations(self._manager.claims, limits.handshake_timeout),
        )
        monitor = StatusMonitor(self._manager, self._network, errors)
        self._control = IPCHandler(files.control_socket, self._manager, monitor, run_as)

    async def run(self) -> int:
        """Up, until a signal, and down.  Raises `UsbipdError` if it does not come up."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        self._supervisor.start()
        self._files.prepare()
        self._control.start_listener()  # from here on the socket's path is ours
        stopped = asyncio.create_task(stop.wait())
        started = asyncio.create_task(self._start())
        try:
            await asyncio.wait({stopped, started}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started.result()
                await stopped
            _LOG.info("ending")
        finally:
            await self._stop(started)
        return 0

    async def _start(self) -> None:
        self._files.prepare_chroot()
        await self._network.start()  # first: with its port in use, no driver need lose its device
        await self._manager.start()
        text = announcement(self._network.listening, await self._manager.list_devices())
        _say(text)

    async def _stop(self, started: asyncio.Task[None]) -> None:
        started.cancel()
        await asyncio.wait({started})
        await asyncio.gather(self._network.stop(), self._manager.stop())
        self._control.close()  # last: a command that waits for its answer has it by now
        self._files.remove()


def announcement(listening: Sequence[str], devices: Sequence[DeviceReport]) -> str:
    """What a person at the terminal needs to know: what is shared and how a client gets it."""
    shared = [device for device in devices if device.state is not DeviceState.NOT_SHARED]
    lines = [f"usbipd {__version__} listens on {', '.join(listening)}."]
    if not shared:
        lines += ["Nothing is shared yet: see `usbipd list`, then `usbipd bind --busid BUSID`."]
    else:
        lines += ["Shared:"]
        for device in shared:
            ids = f"{device.vendor_id:04x}:{device.product_id:04x}"
            lines += [f"  {device.busid:<7} {ids}  {device.product or 'unnamed device'}"]
        address = parse_listen(listening[0])
        usbip = "usbip" if address.port == USBIP_PORT else f"usbip --tcp-port {address.port}"
        host = _reachable_name(address)
        lines += ["On the client:", "  sudo modprobe vhci-hcd", f"  {usbip} list -r {host}"]
        lines += [f"  sudo {usbip} attach -r {host} -b {device.busid}" for device in shared]
    return "\n".join(lines)


def _say(text: str) -> None:
    """Print for the person at the terminal; that nobody reads it, now or at the end, is no failure."""
    try:
        print(text, flush=True)
    except OSError:  # what is left in the buffer goes nowhere
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)


def _reachable_name(address: ListenAddress) -> str:
    """What a client writes for an address that we listen on: our name if that is any address."""
    return socket.gethostname() if ipaddress.ip_address(address.host).is_unspecified else address.host
