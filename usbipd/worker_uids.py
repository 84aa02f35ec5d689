"""The range of user ids for workers: `worker_uids` of the configuration.

Read by the extension and by `usbipd-ext --check-config`.  A worker's user id and the group id of the same
number must not belong to anything else on the host, now or later.  That excludes the ranges from which
systemd and container tools allocate (https://systemd.io/UIDS-GIDS).
"""

import grp
import pwd
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from usbipd.errors import UsageError

DEFAULT_UIDS: Final = "65537-99999"
"""Above the 16-bit ids, below those that useradd(8) assigns to containers of users."""

_LAST: Final = (1 << 32) - 2
"""The next number means "no change": setresuid(2)."""

_RESERVED: Final = (
    (range(1), "root"),
    (range(61184, 65520), "services of systemd (DynamicUser=)"),
    (range(65534, 65536), "the user nobody and the invalid 16-bit id"),
    (range(524288, 1879048192), "containers of systemd-nspawn"),
)
"""Ids that no range may include, and their use."""

_SUBORDINATE: Final = (Path("/etc/subuid"), Path("/etc/subgid"))

_MAPS: Final = (Path("/proc/self/uid_map"), Path("/proc/self/gid_map"))
"""The ids that exist in our user namespace; in the first one, all (user_namespaces(7))."""

_EXAMPLES: Final = (DEFAULT_UIDS, "60706-61183", *(f"{first}000-{first}999" for first in range(59, 0, -1)))
"""Ranges to suggest, the best first.  Containers often have only the ids below 65536; the second range is the
part that systemd leaves unused there."""


def parse_uids(text: str) -> range:
    """`FIRST-LAST`, both included.  Raises `UsageError`, also for a range that no host may use."""
    match = re.fullmatch("([0-9]{1,10})-([0-9]{1,10})", text, re.ASCII)
    if not match:
        raise _wrong(text, "write two numbers, FIRST-LAST")
    first, last = map(int, match.groups())
    if first > last:
        raise _wrong(text, "the first is greater than the last")
    if last > _LAST:
        raise _wrong(text, f"the greatest possible id is {_LAST}")
    uids = range(first, last + 1)
    for reserved, use in _RESERVED:
        if common := _common(uids, reserved):
            raise _wrong(text, f"{common} reserved for {use}")
    return uids


def check_unused(text: str) -> None:
    """Raises `UsageError` if a user, a group or a container of this host has one of these ids, or if one does
    not exist in our user namespace.

    Finds only users that the user databases list: directory services often list none.
    """
    uids = parse_uids(text)
    known = [*_known_here(), *_unmapped()]
    if problem := _problem(uids, known):
        usable = (example for example in _EXAMPLES if not _problem(parse_uids(example), known))
        raise _wrong(text, problem, next(usable, None))


def _problem(uids: range, known: list[tuple[range, str]]) -> str:
    """Why these ids cannot be used here; "" if they can."""
    return next((f"{common} {what}" for ids, what in known if (common := _common(uids, ids))), "")


def _known_here() -> Iterator[tuple[range, str]]:
    for user in pwd.getpwall():
        yield range(user.pw_uid, user.pw_uid + 1), f"the user {user.pw_name}"
    for group in grp.getgrall():
        yield range(group.gr_gid, group.gr_gid + 1), f"the group {group.gr_name}"
    for file in _SUBORDINATE:
        yield from _subordinate(file)


def _subordinate(file: Path) -> Iterator[tuple[range, str]]:
    """subuid(5): lines of OWNER:FIRST:COUNT."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:  # no such file
        return
    for line in lines:
        owner, *numbers = line.split(":")
        if len(numbers) == 2 and all(re.fullmatch("[0-9]{1,10}", each, re.ASCII) for each in numbers):
            first, count = map(int, numbers)
            yield range(first, first + count), f"for containers of {owner} ({file})"


def _unmapped() -> Iterator[tuple[range, str]]:
    """The ids that do not exist here: setuid(2) and setgid(2) fail with EINVAL.

    Lines of FIRST FIRST-OUTSIDE COUNT: user_namespaces(7).
    """
    for file in _MAPS:
        try:
            lines = file.read_text().splitlines()
        except OSError:  # a kernel without user namespaces
            continue
        what = f"not mapped in this user namespace ({file})"
        end = 0
        for first, count in sorted((int(first), int(count)) for first, _, count in map(str.split, lines)):
            yield range(end, first), what
            end = first + count
        yield range(end, _LAST + 1), what


def _common(uids: range, others: range) -> str:
    """The ids that are in both, with a verb; "" if there are none."""
    first, last = max(uids.start, others.start), min(uids.stop, others.stop) - 1
    if first > last:
        return ""
    return f"{first} is" if first == last else f"{first} to {last} are"


def _wrong(text: str, why: str, example: str | None = DEFAULT_UIDS) -> UsageError:
    """`example` is a range that would be right; None if this host has none."""
    right = (
        "map more user and group ids into this namespace"
        if example is None
        else f"choose a range that nothing else on this host uses, such as {example}"
    )
    return UsageError(
        f"{text!r} cannot be the user ids of workers: {why}; {right}",
        code="bad-uids",
    )
