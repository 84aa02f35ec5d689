"""Errors that people see: each carries its message, an advice and an exit code.  Used by every process."""

from typing import Final

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: what a shell says of SIGINT, 128 and the signal's number."""
BROKEN_PIPE: Final = 141
"""Exit code when nobody reads our output any more: what a shell says of SIGPIPE."""


class UsbipdError(Exception):
    """What went wrong, where, and what would be right.

    `code` is a stable word for programs (it travels in IPC and in JSON), `advice` a sentence on what to try.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str = "error", advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice

    def __str__(self) -> str:
        return self.message


class UsageError(UsbipdError):
    """An argument or a value of the configuration is wrong."""

    exit_code = 2


class ProtocolError(UsbipdError):
    """The peer's bytes are not USB/IP; the connection cannot go on."""


class IPCError(UsbipdError):
    """The peer of a channel broke its rules, or is gone."""


class ExtensionUnreachableError(UsbipdError):
    """No extension answers on the control socket."""

    exit_code = 3


class ClaimError(UsbipdError):
    """The device could not be taken from its drivers; `code` is libusb's name for the reason."""
