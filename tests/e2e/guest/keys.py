"""Key events from a keyboard's event device.  Runs in the guest."""

import fcntl
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from tests.e2e.guest.scenario import check
from tests.e2e.guest.system import PATIENCE

INPUT_EVENT: Final = struct.Struct("llHHi")  # include/uapi/linux/input.h, struct input_event
EV_SYN, EV_KEY, EV_LED = 0x00, 0x01, 0x11  # include/uapi/linux/input-event-codes.h
SYN_DROPPED: Final = 3
EVIOCGRAB: Final = 0x40044590  # include/uapi/linux/input.h, _IOW('E', 0x90, int)
AUTOREPEAT: Final = 2  # the value of the kernel's autorepeat events


@contextmanager
def grabbed(node: Path) -> Iterator[BinaryIO]:
    """The event device, grabbed: else the guest's console would get the keys too."""
    with node.open("r+b", buffering=0) as events:
        fcntl.ioctl(events, EVIOCGRAB, 1)
        yield events


def key_events(events: BinaryIO) -> Iterator[tuple[int, int]]:
    """Code and value (1 down, 0 up) of each key event, endlessly.

    Raises `StepError` if none arrives, or if events are lost because they were read too slowly.
    """
    while True:
        check(bool(select.select([events], [], [], PATIENCE)[0]), f"no key event within {PATIENCE:.0f} s")
        for *_time, kind, code, value in INPUT_EVENT.iter_unpack(events.read(64 * INPUT_EVENT.size)):
            check((kind, code) != (EV_SYN, SYN_DROPPED), "key events were lost: they were read too slowly")
            if kind == EV_KEY and value != AUTOREPEAT:
                yield code, value


def set_led(events: BinaryIO, led: int, on: bool) -> None:
    """Switch an LED of the keyboard: `led` is one of LED_* in input-event-codes.h."""
    events.write(INPUT_EVENT.pack(0, 0, EV_LED, led, on) + INPUT_EVENT.pack(0, 0, EV_SYN, 0, 0))
