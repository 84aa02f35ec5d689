"""Sleep and wake of a Mac, on an IOKit that the test makes."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fake_iokit.registry import FakeRegistry, load, needs_fake
from usbipd.errors import UsbipdError

if TYPE_CHECKING:
    from usbipd.usb.power import PowerWatch

pytestmark = needs_fake

CAN_SLEEP, WILL_SLEEP, WILL_NOT_SLEEP, WILL_POWER_ON, HAS_POWERED_ON = (
    0xE0000270,
    0xE0000280,
    0xE0000290,
    0xE0000320,
    0xE0000300,
)  # IOKit/IOMessage.h


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    registry = FakeRegistry(load())
    yield registry
    assert registry.power_left == 0


def test_every_question_is_answered_and_what_happens_is_told(registry: FakeRegistry) -> None:
    from usbipd._iokit import SLEEPS, WAKES, PowerListener

    heard: list[str] = []
    listener = PowerListener(heard.append)
    assert registry.power(CAN_SLEEP, 7) == 7
    assert registry.power(WILL_NOT_SLEEP, 0) == 0
    assert heard == []
    assert registry.power(WILL_SLEEP, 8) == 8
    assert registry.power(WILL_POWER_ON, 0) == 0
    assert registry.power(HAS_POWERED_ON, 0) == 0
    assert heard == [SLEEPS, WAKES]
    listener.close()
    listener.close()
    registry.power(WILL_SLEEP, 9)
    assert heard == [SLEEPS, WAKES]
    registry.assert_balanced()


def test_a_listener_that_is_dropped_is_closed(registry: FakeRegistry) -> None:
    from usbipd._iokit import PowerListener

    del (listener := [PowerListener(print)])[:]
    assert listener == []
    registry.assert_balanced()


def test_no_power_management(registry: FakeRegistry) -> None:
    from usbipd._iokit import PowerListener

    registry.fail("IORegisterForSystemPower", -1)
    with pytest.raises(UsbipdError, match="does not tell when it sleeps") as caught:
        PowerListener(print)
    assert caught.value.code == "iokit"


# ---- what the extension does with it -------------------------------------------------------------


def watch(on_wake: list[str]) -> "PowerWatch":
    load()
    from usbipd.usb.power import PowerWatch

    return PowerWatch(lambda: on_wake.append("woken"))


def test_devices_are_looked_for_after_a_wake(
    registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "usbipd.usb.power")
    woken: list[str] = []

    async def sleep_and_wake() -> None:
        power = watch(woken)
        power.start()
        assert power.problem is None
        await asyncio.to_thread(registry.power, WILL_SLEEP, 1)
        assert woken == []
        await asyncio.to_thread(registry.power, HAS_POWERED_ON, 0)
        assert woken == ["woken"]
        await power.stop()
        await power.stop()

    asyncio.run(sleep_and_wake())
    assert [record.message for record in caplog.records] == [
        "this Mac goes to sleep",
        "this Mac has woken up",
    ]
    registry.assert_balanced()


def test_a_mac_that_does_not_tell(registry: FakeRegistry) -> None:
    registry.fail("IORegisterForSystemPower", -1)

    async def start() -> str | None:
        power = watch([])
        power.start()
        await power.stop()
        return power.problem

    assert asyncio.run(start()) == "macOS does not tell when it sleeps: IORegisterForSystemPower failed"
