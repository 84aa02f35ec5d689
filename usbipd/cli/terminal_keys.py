"""The keyboard of a live view: keys without Enter and echo; the mode of the terminal is restored afterwards.

Runs in the caller's process.
"""

# Restoring the mode
#
# The mode is restored before this process ends or stops: not every shell restores it.
# Exceptions, Ctrl-C and `q` pass `__exit__`.  A signal that ends the process by default is handled: the
# handler restores the mode and raises the signal again with its default action, so the exit status stays the
# same. Ctrl-Z restores and stops; SIGCONT takes the keys again.  SIGSTOP cannot be handled: there the shell
# restores.
#
# A background job must not touch the terminal, or the kernel stops it (SIGTTOU and SIGTTIN, termios(4)).  It
# neither sets the mode nor reads, and checks before each wait whether it is in the foreground again.

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
"""Seconds between the checks of a background job whether it is in the foreground again."""
_FATAL: Final = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)


class Woken(NamedTuple):
    """Why a wait ended; a timeout if none of these."""

    is_readable: bool = False
    keys: tuple[Key, ...] = ()
    is_changed: bool = False
    """The size of the terminal may have changed."""
    is_ours_again: bool = False
    """The job is in the foreground again; the screen shows the output of other programs."""


class TerminalKeys:
    """The keys typed at `descriptor`, within a `with` block.  For the main thread, which gets the signals."""

    def __init__(self, descriptor: int = 0) -> None:
        self._descriptor = descriptor
        self._reader = KeyReader()
        self._saved: list[Any] | None = None
        """The mode of the terminal at the start; None: there is no terminal."""
        self._is_taken = False
        """Whether the mode may be ours."""
        self._is_stale = False
        """Whether the mode may have changed since: the process was stopped."""
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
        with contextlib.suppress(termios.error):  # not a terminal
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
        """Whether this process may use the terminal; True without job control."""
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # not the controlling terminal, or no terminal
            return True

    def wait(self, readable: int | None, seconds: float) -> Woken:
        """Wait for `readable`, keys, or a change of the terminal, at most `seconds`."""
        is_ours_again = self._take()
        is_changed = False
        descriptors = [each for each in (readable, self._wake_reader) if each is not None]
        if self._is_taken and not self._is_stale:
            descriptors.append(self._descriptor)
        elif self.has_keys:
            # A shell that brings a running job to the foreground does not signal it.
            seconds = min(seconds, BACKGROUND_LOOK)
        # Not poll(2), which does not support terminals on every macOS.
        ready, _, _ = select.select(descriptors, [], [], 0 if is_ours_again else max(0.0, seconds))
        if self._wake_reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, READ_SIZE)
            is_changed = True
            is_ours_again = self._take() or is_ours_again
        keys = self._read() if self._descriptor in ready else ()
        return Woken(readable in ready, keys, is_changed, is_ours_again)

    def _read(self) -> tuple[Key, ...]:
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except OSError:  # EIO: hung up, SIGHUP follows
            data = b""
        if not data:
            self._saved, self._is_taken = None, False
        return tuple(self._reader.feed(data))

    def _take(self) -> bool:
        """Set our mode if it is not set and this is the foreground job; whether it did."""
        is_set = self._is_taken and not self._is_stale
        if self._saved is None or is_set or not self.is_in_foreground():
            return False
        mode = list(self._saved)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6] = list(mode[6])
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        self._is_taken, self._is_stale = True, False  # before, so that a signal restores it in any case
        return self._set(mode)

    def _restore(self) -> None:
        """Restore the mode of the start.  Idempotent; signal handlers call it at any point."""
        if self._saved is not None and self._is_taken:
            if self.is_in_foreground():
                self._set(self._saved)
            self._is_taken = False

    def _set(self, mode: list[Any]) -> bool:
        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, mode)
        except termios.error:  # hung up
            return False
        return True

    # ---- signals -------------------------------------------------------------------------------------------

    def _handle(self, number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> None:
        before = signal.getsignal(number)
        if before is not signal.SIG_IGN:  # as nohup(1) sets it
            self._handlers[number] = signal.SIG_DFL if before is None else before
            signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._restore()  # here: a second Ctrl-C may interrupt `__exit__`
        raise KeyboardInterrupt

    def _end(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        # The process is stopped here, until SIGCONT.
        signal.signal(number, self._suspend)

    def _wake(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGCONT:
            self._is_stale = True
