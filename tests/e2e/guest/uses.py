"""The simulated devices' behaviour, seen by drivers and programs of a stock client.  Runs in the guest."""

import array
import math
import os
import wave
from pathlib import Path
from typing import Final

import usb.core  # type: ignore[import-untyped]

from tests.e2e.guest.keys import grabbed, key_events
from tests.e2e.guest.scenario import StepError, check
from tests.e2e.guest.streams import Background, check_same
from tests.e2e.guest.system import PATIENCE, run, wait_for
from tests.e2e.guest.usb import UsbDevice

# include/uapi/linux/input-event-codes.h, KEY_U, KEY_S, ...
KEYS: Final = {22: "u", 31: "s", 48: "b", 23: "i", 25: "p", 32: "d", 28: "\n"}
TEXT: Final = "usbipd\n"

RATE: Final = 48000
TONE: Final = 440
SLOW: Final = ("--buffer-time=4000000", "--period-time=20000")
"""Microseconds: the kernel gives up on a period after 1.1 times the buffer, and time is slow here."""

SOURCE_IN, SINK_OUT, LOOPBACK_IN, LOOPBACK_OUT = 0x81, 0x01, 0x82, 0x02
URB_SIZE: Final = 16 * 1024  # libusb's largest request to usbfs: linux_usbfs.h, MAX_BULK_BUFFER_LENGTH
MAX_PACKET: Final = 512  # high speed
USB_TIMEOUT: Final = int(PATIENCE * 1000)  # ms


def check_typing(keyboard: UsbDevice) -> None:
    """It must type its word repeatedly, with each key pressed and released."""
    node = wait_for("an event device of the keyboard", keyboard.event_device)
    typed = ""
    down = None
    with grabbed(node) as events:
        for code, value in key_events(events):
            check(code in KEYS, f"key code {code} after {typed!r}")
            if value == 1:
                check(down is None, f"key code {code} went down while {down} was down")
                typed += KEYS[code]
                down = code
            else:
                check(down in (code, None), f"key code {code} went up, but {down} was down")
                check(down is not None or not typed, f"key code {code} went up twice")
                down = None
            if len(typed) >= 2 * len(TEXT):
                break
    print(f"typed: {typed!r}")
    check(typed in 4 * TEXT, f"the keyboard typed {typed!r}, not {TEXT!r} over and over")


def check_tone(source: UsbDevice, recording: Path, seconds: float = 2.0) -> None:
    """Its tone, recorded in the file `recording`, must have no gap and no duplicate packet."""
    node = wait_for("a sound card of the audio source", source.capture_device)
    card = node.name.removeprefix("pcmC").partition("D")[0]
    samples_each = int(seconds * RATE)
    form = ["-f", "S16_LE", "-r", str(RATE), "-c", "2", f"--samples={samples_each}"]
    run("arecord", "-q", "-D", f"hw:{card},0", *SLOW, *form, recording)
    with wave.open(str(recording)) as file:
        samples = array.array("h", file.readframes(file.getnframes()))
    left = samples[0::2]
    check(len(left) == samples_each, f"{len(left)} samples, not {samples_each}")
    check(left == samples[1::2], "left and right differ")
    check(max(left) > 8192 and min(left) < -8192, f"too soft: from {min(left)} to {max(left)}")
    # A sine of frequency f has s[n+1] = 2 cos(2 pi f / rate) s[n] - s[n-1]; rounding to whole numbers adds
    # at most 1/2 + 1 + 1/2.  A gap, a repeated packet or another frequency breaks it.
    factor = 2 * math.cos(2 * math.pi * TONE / RATE)
    for index in range(1, len(left) - 1):
        if abs(left[index + 1] - factor * left[index] + left[index - 1]) > 2.01:
            around = list(left[max(index - 3, 0) : index + 4])
            raise StepError(f"no {TONE} Hz at sample {index} ({index / RATE:.4f} s): {around}")


class Loopback:
    """The loopback device, opened with libusb."""

    def __init__(self, device: UsbDevice) -> None:
        self._device = usb.core.find(bus=int(device.bus), address=int(device.number))
        check(self._device is not None, f"libusb does not see {device.busid}")

    def check_echo(self, size: int) -> None:
        """That many bytes must be returned unchanged."""
        sent = os.urandom(size)
        received = bytearray()

        def send() -> None:
            check(self._device.write(LOOPBACK_OUT, sent, USB_TIMEOUT) == size, "a short write")

        with Background(send):
            while len(received) < size:
                received += self._device.read(LOOPBACK_IN, URB_SIZE, USB_TIMEOUT)
        check_same(bytes(received), sent)

    def check_source(self, size: int) -> None:
        """Its source must send the pattern of Linux's g_zero."""
        pattern = bytes(index % MAX_PACKET % 63 for index in range(URB_SIZE))
        for _ in range(size // URB_SIZE):
            check_same(bytes(self._device.read(SOURCE_IN, URB_SIZE, USB_TIMEOUT)), pattern)

    def check_sink(self, size: int) -> None:
        """Its sink must accept that many bytes."""
        taken = self._device.write(SINK_OUT, bytes(size), USB_TIMEOUT)
        check(taken == size, f"the sink accepted {taken} bytes of {size}")
