"""Landlock, the kernel's sandbox for unprivileged processes.  Runs in the server and the workers.

Linux 5.13 or newer, if enabled.  The process denies itself everything that this kernel's Landlock can deny:
files; from ABI 4 on TCP; from ABI 6 on abstract Unix sockets and signals to other processes.  Open
descriptors keep working.

It applies to the calling thread and the threads that it starts later.  libusb's thread for hotplug events
already exists; the other layers cover it (`confinement.py`).
"""

import ctypes
import errno
import os
import struct
from typing import Final

# The same on all architectures (include/uapi/asm-generic/unistd.h).
_CREATE_RULESET: Final = 444
_RESTRICT_SELF: Final = 446

# include/uapi/linux/landlock.h
_CREATE_RULESET_VERSION: Final = 1
_ATTRIBUTES: Final = struct.Struct("=3Q")  # struct landlock_ruleset_attr: files, network, scopes
_FILES: Final = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
"""LANDLOCK_ACCESS_FS_*, by the ABI that brought them."""
_TCP: Final = 4, 0x3
_SCOPES: Final = 6, 0x3

_ABSENT: Final = (errno.ENOSYS, errno.EOPNOTSUPP)

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def restrict() -> int:
    """Deny all that Landlock can deny, for good.  Returns the kernel's ABI; 0 if absent or disabled.

    Needs no_new_privs.  Raises `OSError`.
    """
    try:
        abi = _call(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (*_ABSENT, errno.EPERM):  # EPERM: a container's filter denies unknown calls
            return 0
        raise
    attributes = _ATTRIBUTES.pack(
        sum(rights for since, rights in _FILES if since <= abi),
        *(rights if since <= abi else 0 for since, rights in (_TCP, _SCOPES)),
    )
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _call(number: int, attributes: int | bytes | None, *arguments: int) -> int:
    first = ctypes.c_long(attributes) if isinstance(attributes, int) else attributes
    result: int = _LIBC.syscall(number, first, *map(ctypes.c_long, arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
