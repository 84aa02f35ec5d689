"""The terminal of a live view: keys without Enter and without echo, and every way back from that.

Runs in the caller's process.
"""

# Leaving
#
# Whatever ends or stops this process, the terminal must have its mode back first: the shell that reads the
# next line does not restore it everywhere.  An exception, Ctrl-C and `q` pass `__exit__`.  A signal whose
# default action ends the process is handled by restoring the mode and then ending by that very signal, so
# that the caller sees the same exit status. Ctrl-Z restores, stops, and takes the keys again at SIGCONT; so
# does a SIGSTOP, which gives no chance to restore: the shell does, as it has to for any program.
#
# A job in the background must not touch the terminal: the kernel would stop it (SIGTTOU, SIGTTIN;
# termios(4)).  So it neither changes the mode nor reads there, and asks again before each wait.

import contextlib
import os
import select
import signal
import termios
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, Self

from usbipd.cli.keys import Key, KeyReader

READ_SIZE: Final = 1024
"""Bytes of keys that are taken at once: one drawing for all of them."""
BACKGROUND_LOOK: Final = 1.0
"""Seconds after which a job in the background looks whether the terminal is its own again."""
_FATAL: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)


class Woken(NamedTuple):
    """Why a wait ended; nothing of it: the time is over."""

    is_readable: bool = False
    keys: tuple[Key, ...] = ()
    is_changed: bool = False
    """The terminal may have another size."""
    is_ours_again: bool = False
    """The terminal was another's meanwhile, and shows what that has written."""


class TerminalKeys:
    """The keys typed at `descriptor`, within a `with` block.  For the main thread, which gets the signals."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._reader = KeyReader()
        self._saved: list[Any] | None = None
        """The mode that the terminal had."""
        self._is_taken = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._wake_reader = self._wake_writer = self._wakeup_before = -1

    @property
    def has_keys(self) -> bool:
        """Whether there is a terminal to type at."""
        return self._saved is not None

    def __enter__(self) -> Self:
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        with contextlib.suppress(termios.error):  # it is no terminal, and sends no keys
            self._saved = termios.tcgetattr(self._descriptor)
        self._handle(signal.SIGINT, self._interrupt)
        for number in _FATAL:
            self._handle(number, self._end)
        self._handle(signal.SIGTSTP, self._suspend)
        self._handle(signal.SIGCONT, self._wake)
        self._handle(signal.SIGWINCH, self._wake)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def is_in_foreground(self) -> bool:
        """Whether the terminal is ours to draw on; also without job control."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # not the terminal that controls this process, or none
            return True

    def wait(self, readable: int | None, seconds: float) -> Woken:
        """Wait for `readable`, keys, or a change of the terminal, at most so long."""
        is_ours_again = self._take()
        is_changed = False
        descriptors = [each for each in (readable, self._wake_reader) if each is not None]
        if self._is_taken:
            descriptors.append(self._descriptor)
        elif self.has_keys:
            seconds = min(
                seconds, BACKGROUND_LOOK
            )  # a shell that takes it to the foreground need not tell it
        # Not poll(2), which does not know terminals on every macOS.
        ready, _, _ = select.select(descriptors, [], [], 0 if is_ours_again else max(0.0, seconds))
        if self._wake_reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, READ_SIZE)
            is_changed = True
            is_ours_again = self._take() or is_ours_again
        keys = self._read() if self._is_taken and self._descriptor in ready else ()
        return Woken(readable in ready, keys, is_changed, is_ours_again)

    def _read(self) -> tuple[Key, ...]:
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except OSError:  # EIO: the terminal is gone, and SIGHUP on its way
            data = b""
        if not data:
            self._saved, self._is_taken = None, False
        return tuple(self._reader.feed(data))

    def _take(self) -> bool:
        """Take the keys if they are to be had and not taken yet; whether it did."""
        if self._saved is None or self._is_taken or not self.is_in_foreground():
            return False
        mode = list(self._saved)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._is_taken = True  # before, so that a signal restores it in any case
        return self._set(mode)

    def _restore(self) -> None:
        """Give the terminal its mode back.  Idempotent; handlers call it anywhere."""
        if self._saved is not None and self._is_taken:
            if self.is_in_foreground():
                self._set(self._saved)
            self._is_taken = False

    def _set(self, mode: list[Any]) -> bool:
        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, mode)
        except termios.error:  # the terminal is gone
            return False
        return True

    # ---- signals -------------------------------------------------------------------------------------------

    def _handle(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:  # as nohup(1) wants it
            self._handlers[number] = signal.SIG_DFL if before is None else before
            signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._restore()  # at once: a second Ctrl-C may end what the first one has begun
        raise KeyboardInterrupt

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # Here this process stands still until SIGCONT.
        signal.signal(number, self._suspend)

    def _wake(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self._is_taken = False  # the shell that had the terminal meanwhile has changed its mode
