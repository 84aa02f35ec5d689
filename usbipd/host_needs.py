"""What a configuration needs of this host: checked when the daemon starts and by `usbipd-ext --check-config`.

Runs in the extension before it starts anything, and in that command's process.  Nothing is taken or made.
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
    """Raises `UsageError` if a daemon of this user cannot run with `config`, as far as can be told before.

    That a configured user exists, `config.load` has seen.  What only trying can tell is left: a port that is
    in use.
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
