"""Sleep and wake of a Mac.  test_power.py runs it, in a separate process."""

import asyncio
import threading

import pytest

from tests.mac.rig import mac
from tests.mac.tree import Tree, until
from usbipd._iokit import SLEEPS, WAKES, PowerListener
from usbipd.errors import UsbipdError
from usbipd.usb.power import PowerWatch

CAN_SLEEP, WILL_SLEEP, WILL_NOT_SLEEP, WILL_POWER_ON = (
    0xE0000270,
    0xE0000280,
    0xE0000290,
    0xE0000320,
)  # IOKit/IOMessage.h
NO_DEVICE = 0xE00002C0

pytestmark = pytest.mark.usefixtures("tree")


def test_every_question_is_answered_and_every_change_reported() -> None:
    events: list[str] = []
    listener = PowerListener(events.append)
    assert mac().call("power_listeners") == 1
    assert mac().call("ask_power", CAN_SLEEP)
    assert events == []
    assert mac().sleep()
    asyncio.run(until(lambda: events == [SLEEPS]))
    mac().call("tell_power", WILL_NOT_SLEEP)
    mac().call("tell_power", WILL_POWER_ON)
    mac().wake()
    asyncio.run(until(lambda: events == [SLEEPS, WAKES]))
    listener.close()
    listener.close()
    assert mac().call("power_listeners") == 0
    assert mac().sleep()
    mac().wake()
    assert events == [SLEEPS, WAKES]


def test_questions_are_answered_while_python_is_busy() -> None:
    """The kernel gets the answer before `on_change` returns."""
    goes_on = threading.Event()
    listener = PowerListener(lambda _change: assert_set(goes_on))
    assert mac().sleep()
    goes_on.set()
    listener.close()


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_dropped_listener_is_closed() -> None:
    del (listener := [PowerListener(print)])[:]
    assert listener == []
    assert mac().call("power_listeners") == 0


def test_no_power_management(tree: Tree) -> None:
    tree.fail("POWER_REGISTER", NO_DEVICE)
    with pytest.raises(UsbipdError, match="does not tell when it sleeps") as caught:
        PowerListener(print)
    assert caught.value.code == "iokit"


# ---- the extension -------------------------------------------------------------------------------


async def test_devices_are_scanned_after_a_wake(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "usbipd.usb.power")
    woken: list[str] = []
    power = PowerWatch(lambda: woken.append("woken"))
    power.start()
    assert power.problem is None
    assert await asyncio.to_thread(mac().sleep)
    await until(lambda: caplog.records)
    assert woken == []
    await asyncio.to_thread(mac().wake)
    await until(lambda: woken)
    await power.stop()
    await power.stop()
    await asyncio.to_thread(mac().sleep)
    await asyncio.to_thread(mac().wake)
    assert woken == ["woken"]
    assert [record.message for record in caplog.records] == [
        "this Mac is going to sleep",
        "this Mac has woken up",
    ]


def test_a_mac_without_power_messages(tree: Tree) -> None:
    tree.fail("POWER_REGISTER", NO_DEVICE)

    async def start() -> str | None:
        power = PowerWatch(print)
        power.start()
        await power.stop()
        return power.problem

    assert asyncio.run(start()) == "macOS does not tell when it sleeps: IORegisterForSystemPower failed"
