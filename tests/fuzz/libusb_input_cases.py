"""The seeds and crashers of the target `libusb`.  test_pump_inputs.py runs it, in a process whose libusb is
the fake.

Invariant: that of libusb_pump.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import libusb_pump
from tests.fuzz.targets import inputs

LIBUSB = dict(inputs("libusb"))


@pytest.mark.parametrize("name", LIBUSB)
def test_libusb(name: str) -> None:
    libusb_pump.run(LIBUSB[name])


@given(st.binary(max_size=300))
def test_libusb_with_any_input(data: bytes) -> None:
    libusb_pump.run(data)
