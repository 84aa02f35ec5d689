"""The pump before a libusb in software: what one input of its fuzzer does.  Runs in tests and fuzzers, in
a process whose libusb-1.0.so.0 is fake_libusb.c.

Invariant: that of hostile.py, whatever the device and libusb do: URBs end in any order between endpoints,
with any status, also while they are unlinked; calls fail; the device is unplugged.  At the end no transfer of
libusb is left.
"""

from typing import Final

from tests.fuzz.hostile import HostileClient, Settings
from tests.fuzz.pump_input import Operands, Program
from tests.unit.worker.libusb_rig import (
    BULK_IN,
    BULK_OUT,
    CANCELLED,
    INTERRUPT_IN,
    ISO_IN,
    ISO_OUT,
    LibusbRig,
    fake,
)
from tests.unit.worker.rig import DEVID
from tests.urb import Submit, encode

ENDPOINTS: Final = (0, BULK_OUT, BULK_IN, INTERRUPT_IN, ISO_OUT, ISO_IN)
FUNCTIONS: Final = (
    b"submit",
    b"submit",
    b"set_configuration",
    b"set_interface",
    b"clear_halt",
    b"reset",
    b"claim",
    b"release",
)
CODES: Final = (-1, -2, -3, -5, -6, -7, -8, -9, -11, -12, -99)
"""enum libusb_error without NO_DEVICE, for which there is the act that unplugs, and INTERRUPTED."""
NOT_FOUND: Final = -5
CONFIGURATIONS: Final = (0, 1, 2)
"""Those for which libusb is asked."""
STATUSES: Final = (0, 0, 0, 1, 2, CANCELLED, 4, 6)
"""enum libusb_transfer_status without NO_DEVICE."""


class LinuxSettings(Settings):
    """Linux releases all interfaces for SET_CONFIGURATION; if another value fails, it leaves none active."""

    def __init__(self, rig: LibusbRig) -> None:
        super().__init__(
            [endpoint for each in rig.claim.descriptors.configurations for endpoint in each.endpoints],
            rig.claim.configuration,
        )
        self._rig = rig

    def left_by(self, submit: Submit) -> None:
        if submit.ep == 0 and submit.setup[:2] == b"\x00\x09" and submit.setup[2] in CONFIGURATIONS:
            self.configuration = self._rig.claim.configuration
            self.alternates = {}


class Hand:
    """What happens at the device's end."""

    def __init__(self, rig: LibusbRig) -> None:
        self._rig = rig

    def act(self, program: Program, operands: Operands) -> None:
        kind = operands.number()
        if kind < 0xB0:
            self._complete(program, operands)
        elif kind < 0xD0:
            self._cancel_late(program, operands)
        elif kind < 0xFC:
            self._fail(program, operands)
        else:
            program.client.deliver()
            program.client.device_failed = True
            fake.fake_unplug()
            program.client.turn()

    def complete_all(self) -> bool:
        """The device ends whatever it has; False: that is nothing."""
        any_urb = False
        for endpoint in ENDPOINTS:
            while length := self._length(endpoint):
                assert fake.fake_complete(endpoint, 0, bytes(length), 0)
                any_urb = True
        return any_urb

    def _complete(self, program: Program, operands: Operands) -> None:
        """The oldest URB of an endpoint ends, with a share of its data."""
        endpoint = ENDPOINTS[operands.number() % len(ENDPOINTS)]
        status, share = STATUSES[operands.number() % len(STATUSES)], operands.number()
        if program.client.waits_for_settings:
            program.client.deliver()
        length = self._length(endpoint)
        if length:
            moved = (length - 8 if endpoint == 0 else length) * share // 255
            fake.fake_complete(endpoint, status, bytes(moved), moved)
            if program.client.waits_for_settings:  # what comes behind may be for other endpoints
                program.client.turn()

    def _length(self, endpoint: int) -> int:
        """Of the oldest transfer of an endpoint; at least 1 if there is one."""
        text = fake.fake_submitted(endpoint)
        return max(1, int(text.split()[2])) if text else 0

    def _cancel_late(self, program: Program, operands: Operands) -> None:
        """An UNLINK that the device does not heed for now."""
        program.client.deliver()
        if program.client.between_messages and program.client.alive:
            fake.fake_hold_cancels(1)
            program.client.write(encode(program.unlink_of(operands.number())))
            program.client.deliver()
            fake.fake_hold_cancels(0)

    def _fail(self, program: Program, operands: Operands) -> None:
        """The next call of a function fails."""
        function = FUNCTIONS[operands.number() % len(FUNCTIONS)]
        code = CODES[operands.number() % len(CODES)]
        if (function, code) == (b"reset", NOT_FOUND):  # the device came back as another
            program.client.device_failed = True
        if function == b"claim":
            program.client.claim_failed = True
        fake.fake_fail(function, code)


def run(data: bytes) -> None:
    """Fails if the invariant does not hold for this input."""
    fake.fake_begin()
    rig = LibusbRig()
    try:
        settings = LinuxSettings(rig)
        client = HostileClient(rig, settings, devid=DEVID)
        hand = Hand(rig)
        Program(client, settings, Operands(data), hand.act).run()
        client.deliver()
        while hand.complete_all():
            client.turn()
        client.end()
    finally:
        rig.close()
    assert (fake.fake_pending(), fake.fake_allocated()) == (0, 0)
