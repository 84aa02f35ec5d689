"""Messages between the processes: typed, framed, with file descriptors, and who may send which."""

from typing import Final

CHANNEL_DESCRIPTOR: Final = 3
"""Where a child finds its channel to the extension that started it."""
