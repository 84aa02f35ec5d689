"""Errors that users see: each carries a message, advice and an exit code.  Used by every process."""

from typing import Final

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as a shell reports it."""
BROKEN_PIPE: Final = 141
"""Exit code when the reader of our output has closed it: 128 + SIGPIPE, as a shell reports it."""


class UsbipdError(Exception):
    """A failure: what went wrong, where, and what would be right.

    `code` is a stable word for programs (part of IPC and JSON); `advice` is a clause on what to try, without
    a final period.
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
    """The peer's bytes are not USB/IP; the connection cannot continue."""


class IPCError(UsbipdError):
    """The peer of a channel broke its rules, or is gone."""


class ExtensionUnreachableError(UsbipdError):
    """No extension answers on the control socket."""

    exit_code = 3


class ClaimError(UsbipdError):
    """The device could not be claimed; `code` is libusb's name for the reason."""
