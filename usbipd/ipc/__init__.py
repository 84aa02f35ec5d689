"""Messages between the processes: types, framing, file descriptors, and permissions."""

from typing import Final

CHANNEL_DESCRIPTOR: Final = 3
"""A child's channel to the extension that started it."""
