"""The seeds and crashers of the target `libusb`.  test_pump_inputs.py runs it, in a process whose libusb is
the fake.

Invariant: that of libusb_pump.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import libusb_pump
from tests.fuzz.targets import inputs
from tests.unit.worker.libusb_rig import LibusbRig

LIBUSB = dict(inputs("libusb"))


@pytest.mark.parametrize("name", LIBUSB)
def test_libusb(name: str) -> None:
    libusb_pump.run(LIBUSB[name])


@pytest.mark.parametrize("name", LIBUSB)
def test_the_work_of_an_input_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    turn = LibusbRig.turn

    def counted(rig: LibusbRig) -> int:
        nonlocal turns
        turns += 1
        return turn(rig)

    monkeypatch.setattr(LibusbRig, "turn", counted)
    libusb_pump.run(LIBUSB[name])
    assert turns < 1000


@given(st.binary(max_size=300))
def test_libusb_with_any_input(data: bytes) -> None:
    libusb_pump.run(data)
