"""Key events of a keyboard, as its event device tells them.  Runs in the guest."""

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
AUTOREPEAT: Final = 2  # the value of a key event that the kernel itself makes


@contextmanager
def grabbed(node: Path) -> Iterator[BinaryIO]:
    """The event device, whose keys nobody else gets: the guest's own console would take them too."""
    with node.open("r+b", buffering=0) as events:
        fcntl.ioctl(events, EVIOCGRAB, 1)
        yield events


def key_events(events: BinaryIO) -> Iterator[tuple[int, int]]:
    """Code and value (1 down, 0 up) of each key event, for ever.

    Raises `StepError` if none comes, and if they come faster than they are read.
    """
    while True:
        check(bool(select.select([events], [], [], PATIENCE)[0]), f"no key event came in {PATIENCE:.0f} s")
        for *_time, kind, code, value in INPUT_EVENT.iter_unpack(events.read(64 * INPUT_EVENT.size)):
            check((kind, code) != (EV_SYN, SYN_DROPPED), "key events were read too late, and are lost")
            if kind == EV_KEY and value != AUTOREPEAT:
                yield code, value


def set_led(events: BinaryIO, led: int, on: bool) -> None:
    """Switch a light of the keyboard: `led` is one of LED_* in input-event-codes.h."""
    events.write(INPUT_EVENT.pack(0, 0, EV_LED, led, on) + INPUT_EVENT.pack(0, 0, EV_SYN, 0, 0))
