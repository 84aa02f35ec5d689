"""The worker's main: claims one device, drops its rights, then serves one client after another.

Every process of usbipd starts alike: channel on descriptor 3, log, signals, orders from the extension, drop,
proof.  A worker lives exactly as long as its claim: it exits when the extension sends RELEASE, when the
device is gone, or when the extension is gone (end of file on the channel).
"""

import logging
import mmap
import os
import socket
from typing import Final, NoReturn

from usbipd import _pump, confinement, frozen, log
from usbipd._claim import libusb_runtime_name
from usbipd.counters import COUNTER_PAGE_SIZE
from usbipd.errors import IPCError, UsbipdError
from usbipd.ipc import CHANNEL_DESCRIPTOR
from usbipd.ipc.blocking_channel import BlockingChannel
from usbipd.ipc.children import (
    CHILDREN,
    USELESS_WHEN_CONFINED,
    AttachParameters,
    ClaimParameters,
    ClaimResult,
    DetachedParameters,
    GoneParameters,
    LogParameters,
)
from usbipd.ipc.conversation import Request
from usbipd.ipc.messages import Command, EventName, Nothing
from usbipd.log import LIMITED
from usbipd.worker.held_device import HeldDevice, hold_device

_LOG: Final = logging.getLogger(__name__)

_GONE: Final = "the device is gone"
_CLAIM_LOST: Final = "the device could not be claimed again after a request that releases it"
_CLOSED: Final = "the extension closed the channel"
"""Not an error: an extension may exit while a device is being claimed."""


class _Ended(Exception):  # noqa: N818 - not an error
    """The worker has released its device and exits."""


class Worker:
    """One claimed device and the client that uses it, if any."""

    def __init__(self, channel: BlockingChannel, held: HeldDevice, pump: _pump.Pump) -> None:
        self._channel = channel
        self._held = held
        self._pump = pump
        self._client: socket.socket | None = None

    def run(self) -> NoReturn:
        """Serves until `_Ended`.  On any other exception it releases the device first."""
        try:
            while True:
                self._serve(self._pump.run())
        except _Ended:
            raise
        except BaseException:
            self._release()
            raise

    def _serve(self, wake: int) -> None:
        if wake == _pump.CHANNEL:
            self._read_channel()
        elif wake == _pump.CLIENT_CLOSED:
            self._detach("the client closed the connection")
        elif wake == _pump.CLIENT_FAILED:
            self._detach(self._pump.problem)
        elif wake == _pump.DEVICE_GONE:
            self._detach(_GONE)
        elif wake == _pump.CLAIM_LOST:
            self._detach(_CLAIM_LOST)

    def _read_channel(self) -> None:
        item = self._channel.receive()
        if item is None:
            _LOG.info("%s: releasing the device", _CLOSED)
            self._end()
        if not isinstance(item, Request):
            raise IPCError(f"the extension sent a {type(item).__name__} to a worker")
        match item.parameters:
            case AttachParameters() if item.descriptor is not None:
                self._attach(socket.socket(fileno=item.descriptor), item.parameters)
                self._channel.respond(item, Nothing())
            case Nothing() if item.command is Command.PING:
                self._channel.respond(item, Nothing())
            case LogParameters():
                self._channel.respond(item, _set_log_level(item.parameters))
            case Nothing() if item.command is Command.LOG_FILE and item.descriptor is not None:
                log.take_over(item.descriptor)
                os.close(item.descriptor)
                self._channel.respond(item, Nothing())
            case Nothing() if item.command is Command.DISCONNECT:
                self._disconnect(item)
            case Nothing() if item.command is Command.RELEASE:
                problems = self._release()
                self._channel.respond(
                    item, UsbipdError("; ".join(problems), code="release-failed") if problems else Nothing()
                )
                raise _Ended
            case _:
                raise IPCError(f"the extension sent {item.command} to a worker that has its device")

    def _attach(self, client: socket.socket, parameters: AttachParameters) -> None:
        if self._client is not None:
            client.close()
            raise IPCError("the extension sent ATTACH while a client is attached")
        _LOG.debug("attached by %s", parameters.client)
        self._client = client
        self._pump.attach(client.fileno())

    def _disconnect(self, request: Request) -> None:
        if self._client is None:  # it may have left before the request arrived
            error = UsbipdError("no client is attached", code="not-attached")
            self._channel.respond(request, error)
        else:
            self._detach("ended on request", request)

    def _detach(self, reason: str, request: Request | None = None) -> None:
        """Ends the client's session and prepares the device for the next one.

        Answers `request`, if any, after DETACHED, so that the extension knows of the end by then, and before
        the reset, which takes time.
        """
        if self._client is not None:
            _LOG.debug("client detached: %s", reason)
            self._close_client()
            self._channel.push(EventName.DETACHED, DetachedParameters(reason=reason))
            if request is not None:
                self._channel.respond(request, Nothing())
            self._restore()
        if self._pump.gone:
            self._channel.push(EventName.DEVICE_GONE, GoneParameters(reason=_GONE))
            self._end()
        if self._pump.unclaimed:
            raise UsbipdError(f"{_CLAIM_LOST}: only a new worker can claim it")
        self._channel.push(EventName.RESTORED, Nothing())

    def _close_client(self) -> None:
        """Closes the connection first, to notify the client; then cancels its URBs."""
        assert self._client is not None
        try:
            self._client.shutdown(socket.SHUT_RDWR)
        except OSError:  # already closed
            _LOG.debug("the client's socket was closed before")
        drained = self._pump.finish()
        if self._held.transfers.problem:
            _LOG.error("the simulated device failed: %s", self._held.transfers.problem, extra=LIMITED)
        self._client.close()
        self._client = None
        if not drained:
            raise UsbipdError("the device keeps cancelled URBs: only the end of this worker frees them")

    def _restore(self) -> None:
        """Undoes the client's changes to the device's settings, unless the device is gone or unclaimed."""
        if not (self._pump.gone or self._pump.unclaimed):
            result = self._pump.restore()
            if result < 0:
                _LOG.warning("resetting the device failed: Linux errno %d", -result, extra=LIMITED)

    def _release(self) -> list[str]:
        """Releases the device to this host.  Returns the problems, a sentence each."""
        if self._client is not None:
            self._close_client()
            self._restore()
        problems = self._held.give_back()
        for problem in problems:
            _LOG.error("%s", problem)
        return problems

    def _end(self) -> NoReturn:
        self._release()
        raise _Ended


def _set_log_level(parameters: LogParameters) -> Nothing | UsbipdError:
    try:
        log.set_level(parameters.level)
    except UsbipdError as error:
        return error
    return Nothing()


def _start(channel: BlockingChannel) -> Worker:
    """CLAIM: claims the device, drops rights, answers.  On failure it answers with the error, releases the
    device and raises."""
    order = channel.receive()
    if order is None:
        raise _Ended
    if (
        not isinstance(order, Request)
        or not isinstance(order.parameters, ClaimParameters)
        or order.descriptor is None
    ):
        raise IPCError("the first order to a worker is CLAIM with the counter page")
    try:
        try:
            page = mmap.mmap(order.descriptor, COUNTER_PAGE_SIZE)
        finally:
            os.close(order.descriptor)
        log.set_level(order.parameters.log_level)
        if order.parameters.confinement is not None:
            # First: the socket of the log could send to abstract addresses of the host, and libusb starts a
            # thread, which would stay in the host's namespace.
            confinement.leave_network()
        log.send_to(order.parameters.log_to)
        return _claim(channel, order, order.parameters, page)
    except BaseException as error:
        channel.respond(order, _error_for_extension(error))
        raise


def _claim(channel: BlockingChannel, order: Request, parameters: ClaimParameters, page: mmap.mmap) -> Worker:
    held = hold_device(parameters)
    try:
        device = held.device()
        confined = confinement.confine(
            parameters.confinement, open_files=confinement.OPEN_FILES_OF_A_WORKER, accepts=False
        )
        if parameters.confinement is not None:
            _try_to_claim_again(held)
        pump = _pump.Pump(
            held.transfers,
            configurations=held.configurations,
            configuration=device.bConfigurationValue,
            devid=device.devid,
            channel=channel.fileno(),
            counters=page,
            budget=parameters.transfer_budget,
        )
        result = ClaimResult(
            device=device, claim_method=held.claim_method, user=confined.user, lacks=confined.lacks
        )
        channel.respond(order, result)
    except BaseException:
        for problem in held.give_back():
            _LOG.error("%s", problem)
        raise
    _LOG.debug("claimed %04x:%04x as %s", device.idVendor, device.idProduct, confined.user)
    return Worker(channel, held, pump)


def _try_to_claim_again(held: HeldDevice) -> None:
    """Raises `UsbipdError` if the confined process cannot claim the device again, as SET_CONFIGURATION needs:
    better now than for each client."""
    try:
        held.claim_again()
    except UsbipdError as error:
        if error.code == "LIBUSB_ERROR_NO_DEVICE":
            raise
        raise UsbipdError(
            f"the confined worker cannot claim its device again: {error.message}",
            code=USELESS_WHEN_CONFINED,
            advice='set confine = "off" in usbipd.toml, and report it to the maintainers of usbipd',
        ) from error


def _error_for_extension(error: BaseException) -> UsbipdError:
    """The error of a failed claim as the extension receives it."""
    if isinstance(error, UsbipdError):
        return error
    what = "cannot drop its rights" if isinstance(error, SystemExit) else f"failed: {error!r}"
    return UsbipdError(f"the worker {what}", code="worker-failed", advice="see the log for details")


def main(arguments: list[str]) -> int:
    """`usbipd-ext @worker BUSID`, started by the extension; the busid is for readers of `ps`."""
    log.configure("worker", busid=arguments[0] if arguments else None)
    try:
        if frozen.IS_FROZEN:
            frozen.check_libusb(libusb_runtime_name())
        channel = BlockingChannel(socket.socket(fileno=CHANNEL_DESCRIPTOR), "worker", CHILDREN, trusted=True)
        _start(channel).run()
    except _Ended:
        return 0
    except (UsbipdError, OSError) as error:
        if isinstance(error, IPCError) and error.code == "gone":  # noticed on a send
            _LOG.info("%s: released the device", _CLOSED)
            return 0
        _LOG.error("%s", error)
        return 1
    except Exception:
        _LOG.exception("internal error")
        return 1
