"""Checks that this host meets the needs of a configuration, at start and for `usbipd-ext --check-config`.

Runs in the extension before it starts anything, and in that command's process.  Changes nothing.
"""

import os
from pathlib import Path

from usbipd.addresses import refuse_overlap, require_presence
from usbipd.config import ServerConfig
from usbipd.errors import UsageError
from usbipd.log import DESTINATIONS
from usbipd.log_file import check_log_file
from usbipd.privileges import find_default_user
from usbipd.worker_uids import check_unused


def check_host(config: ServerConfig) -> None:
    """Raises `UsageError` if a daemon of this user cannot run with `config`, as far as a check can tell.

    `config.load` has checked that a configured user exists.  A port in use is found only at start.
    """
    if os.geteuid() == 0 and config.user is None:
        find_default_user()
    if os.geteuid() == 0 and config.confine != "off":
        try:
            check_unused(config.worker_uids)
        except UsageError as error:
            raise UsageError(f"worker_uids: {error.message}", code=error.code) from error
    refuse_overlap(config.addresses)
    for address in config.addresses:
        require_presence(address)
    if config.log_to not in DESTINATIONS:
        check_log_file(Path(config.log_to))
