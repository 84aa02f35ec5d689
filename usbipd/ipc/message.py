"""The base class of all messages between the processes.  Used by every process."""

import msgspec


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Immutable, strictly decoded."""
