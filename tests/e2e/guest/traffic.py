"""Programs that move data through a loopback device and check every byte.  Runs in the guest."""

import errno
import os
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tests.client import Client
from tests.e2e.guest.client import SERVER
from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.server import PORT
from tests.e2e.guest.system import PATIENCE, wait_for
from tests.e2e.guest.usb import UsbDevice
from tests.e2e.guest.usbfs import BULK, IN, Urb, UsbFile
from usbipd.simulated.loopback import SOURCE_IN

MESSAGE: Final = 4096
"""Bytes of one message: the buffer of the kernel's Loopback gadget (f_loopback, bulk_buflen)."""


@dataclass(frozen=True)
class Loop:
    """The endpoints of a loopback device."""

    interface: int
    read: int
    write: int

    @classmethod
    def of_gadget(cls, device: UsbDevice) -> "Loop":
        """The endpoints of the kernel's gadget, which has one IN and one OUT."""
        read, write = sorted(
            (int(path.name.removeprefix("ep_"), 16) for path in device.path.glob("*:1.0/ep_*")), reverse=True
        )
        return cls(0, read, write)


class Echo:
    """Writes messages and reads them back: `depth` are in flight, and as many read URBs are pending."""

    def __init__(self, device: UsbDevice, loop: Loop, *, depth: int, pause: float = 0.0) -> None:
        """`pause` is in seconds, after each message."""
        self.read = 0
        """Messages that were echoed correctly."""
        self._ends: Counter[str] = Counter()
        """Errors of failed URBs and of failed submits: `IN ESHUTDOWN`."""
        self._wrong: str | None = None
        """The error in echoed data."""
        self._loop = loop
        self._depth = depth
        self._pause = pause
        self._written = 0
        self._in_flight = 0
        self._stopping = threading.Event()
        self._file = UsbFile(device, [loop.interface])
        self._file.open()
        self._thread = threading.Thread(target=self.run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait_for(self, messages: int) -> None:
        """Wait until that many more are echoed.  Raises `StepError` if something fails first."""
        goal = self.read + messages
        wait_for(f"{messages} messages", lambda: self.read >= goal or not self._thread.is_alive())
        check(self.read >= goal, f"the program ended: {self.result}")

    def stop(self) -> None:
        """Stop once everything written is echoed; all must have succeeded."""
        self._stopping.set()
        self._thread.join()
        check(self.read == self._written and not self._ends, f"the program ended: {self.result}")

    @property
    def result(self) -> str:
        """The outcome."""
        return self._wrong or f"{self.read} messages, then {dict(self._ends)}"

    def check_lost(self, *also: str) -> None:
        """Wait until it has lost the device: everything in flight must have ended with ESHUTDOWN.

        `also` are other permitted errors.
        """
        wait_for("the program to lose its device", lambda: not self._thread.is_alive())
        print(f"the program ended: {self.result}", flush=True)
        check(
            self._wrong is None and self._in_flight == 0,
            f"{self._in_flight} URBs are still in flight: {self.result}",
        )
        expected = {f"{what} {name}" for what in ("IN", "OUT") for name in ("ESHUTDOWN", *also)}
        urbs = {end for end in self._ends if not end.startswith("submit ")}
        check(bool(urbs) and urbs <= expected, f"URBs ended with {urbs}, expected are {expected}")
        refusals = set(self._ends) - urbs
        check(refusals <= {"submit ENODEV"}, f"a new URB was refused with {refusals}")

    def run(self) -> None:
        """Echo until stopped or until something fails, then close the device."""
        try:
            for _ in range(2 * self._depth):
                self._read_on()
            for _ in range(self._depth):
                self._write_on()
            while self._in_flight and self._wrong is None:
                self._take(self._reap())
                if self._stopping.is_set() and self.read == self._written:
                    break
        finally:
            self._file.close()

    def _reap(self) -> Urb:
        while True:
            try:
                urb = self._file.reap()
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                time.sleep(0.01)  # the device is gone, and URBs in flight end in a moment
            else:
                self._in_flight -= 1
                return urb

    def _take(self, urb: Urb) -> None:
        if urb.status != 0:
            self._count("IN" if urb.endpoint & IN else "OUT", urb.status)
        elif urb.endpoint & IN:
            if urb.data != _message(self.read):
                self._wrong = f"message {self.read} differs from the one written"
                return
            self.read += 1
            time.sleep(self._pause)
            self._read_on()
            self._write_on()

    def _read_on(self) -> None:
        self._submit(Urb(BULK, self._loop.read, length=MESSAGE))

    def _write_on(self) -> None:
        if not self._stopping.is_set():
            self._submit(Urb(BULK, self._loop.write, _message(self._written)))
            self._written += 1

    def _submit(self, urb: Urb) -> None:
        if not self._ends:  # else wait for those in flight
            try:
                self._file.submit(urb)
            except OSError as error:
                self._count("submit", -(error.errno or 0))
            else:
                self._in_flight += 1

    def _count(self, what: str, status: int) -> None:
        self._ends[f"{what} {errno.errorcode.get(-status, status)}"] += 1


def _message(number: int) -> bytes:
    """A different one for each number, so that lost, duplicate or reordered ones are noticed."""
    return number.to_bytes(8, "big") * (MESSAGE // 8)


def echo_in_child(device: UsbDevice, loop: Loop, depth: int, messages: int) -> int:
    """Starts a process that echoes endlessly; returns its pid once that many messages are echoed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            echo = Echo(device, loop, depth=depth)
            threading.Thread(target=_tell, args=(echo, messages, writer), daemon=True).start()
            echo.run()
            print(f"the program ended: {echo.result}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as news:
        check(news.read(1) == b".", "the program's messages were not echoed")
    return pid


def _tell(echo: Echo, messages: int, writer: int) -> None:
    while echo.read < messages:
        time.sleep(0.01)
    os.write(writer, b".")


def read_within(file: UsbFile, endpoint: int, length: int, seconds: float) -> Urb:
    """One IN that is unlinked if the device does not answer in that time; its status shows that."""
    urb = Urb(BULK, endpoint, length=length)
    file.submit(urb)
    try:
        return file.reap(seconds)
    except StepError:
        file.discard(urb)
        return file.reap()


class DeafClient:
    """A client that requests much data from a source, and reads none until told to."""

    urbs = 48
    asked = 12 << 20
    """Bytes: more than the sockets buffer; usbfs on the host takes 16 MiB at a time."""

    def __init__(self, busid: str) -> None:
        self._session = Client(SERVER, PORT, timeout=PATIENCE).import_device(busid)
        length = self.asked // self.urbs
        self._seqnums = [self._session.submit(SOURCE_IN, length=length) for _ in range(self.urbs)]

    def read_on(self) -> None:
        """Read everything, which must be complete and correct, and detach."""
        for seqnum in self._seqnums:
            reply = self._session.wait_submit(seqnum)
            check(reply.status == 0, f"URB {seqnum} ended with {reply.status}")
            check(reply.data == source_pattern(self.asked // self.urbs), f"URB {seqnum} returned wrong data")
        self._session.close()


def source_pattern(length: int) -> bytes:
    """The pattern of sources: the kernel's SourceSink gadget and the simulated loopback device."""
    return bytes(index % 63 for index in range(512)) * (length // 512)
