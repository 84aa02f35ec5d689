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


@pytest.mark.parametrize("as_on_macos", [False, True])
@pytest.mark.parametrize("name", LIBUSB)
def test_libusb(name: str, as_on_macos: bool) -> None:
    libusb_pump.run(LIBUSB[name], as_on_macos=as_on_macos)


@given(st.binary(max_size=300), st.booleans())
def test_libusb_with_any_input(data: bytes, as_on_macos: bool) -> None:
    libusb_pump.run(data, as_on_macos=as_on_macos)
