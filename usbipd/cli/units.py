"""Formats sizes, counts, durations and times.  Runs in the caller's process.

The short forms are for columns of tables.
"""

import time
from typing import Final

NEAR: Final = 300 * 86400.0
"""Seconds within which a date needs no year."""


def format_bytes(count: int) -> str:
    """A number of bytes in at most eight characters: `817 B`, `32.0 MiB`."""
    if count < 1024:
        return f"{count} B"
    value, units = count / 1024, ["TiB", "GiB", "MiB", "KiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop()
    return f"{value:.1f} {units[-1]}" if value < 99.95 else f"{value:.0f} {units[-1]}"


def short_bytes(count: float) -> str:
    """A number of bytes in at most six characters: `817B`, `1.5MiB`, `32MiB`."""
    value, units = _scaled(count, 1024, 999.5)
    if not units:
        return f"{value:.0f}B"
    return f"{value:.1f}{units}iB" if value < 9.95 else f"{value:.0f}{units}iB"


def short_count(count: int) -> str:
    """A count, in powers of 1000, in at most five characters: `70000`, `1.23M`."""
    value, units = _scaled(count, 1000, 99_999.5)
    if not units:
        return f"{value:.0f}"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{units}"


def _scaled(value: float, base: int, plain: float) -> tuple[float, str]:
    """`value` below 1000 in some unit, and its letter; no unit below `plain`."""
    if value < plain:
        return value, ""
    units = ["E", "P", "T", "G", "M", "K"]
    value /= base
    while value >= 999.5 and len(units) > 1:
        value /= base
        units.pop()
    return value, units[-1]


def short_latency(microseconds: int) -> str:
    """The time that an URB took, in at most five characters: `128us`, `1.0ms`, `8.4s`."""
    for size, unit in ((1_000_000, "s"), (1000, "ms")):
        if microseconds >= size:
            value = microseconds / size
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{microseconds}us"


def format_duration(seconds: float) -> str:
    """A time span by its two largest units: `2 d 3 h`, `4 min 7 s`, `12 s`."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if left >= size or parts:
            parts.append(f"{left // size} {unit}")
            left %= size
    parts.append(f"{left} s")
    return " ".join(parts[:2])


def format_time(moment: float) -> str:
    """`moment`, seconds since the epoch, as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def format_clock(moment: float) -> str:
    """`moment` as local time if it is today, else as the date."""
    then = time.localtime(moment)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d", then)


def short_moment(moment: float) -> str:
    """`moment` as `22:13` if it is today, `Nov 14` within some months, else as the full date."""
    then, now = time.localtime(moment), time.localtime()
    if then[:3] == now[:3]:
        return time.strftime("%H:%M", then)
    is_near = abs(time.mktime(now) - moment) < NEAR
    return time.strftime("%b %d" if is_near else "%Y-%m-%d", then)
