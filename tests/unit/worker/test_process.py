"""The worker's main against an extension in the test's hands: whatever ends it, the device goes back."""

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from usbipd import _pump
from usbipd.ipc.channel import BlockingChannel, request_frame, send_some
from usbipd.ipc.messages import AttachParameters, ClaimParameters, Command, Message, SimulatedSpec
from usbipd.simulated.catalog import create
from usbipd.worker import process
from usbipd.worker.claim import HeldSimulation
from usbipd.worker.report import COUNTER_PAGE_SIZE


class Watched(HeldSimulation):
    """Counts how often it is given back."""

    given_back = 0

    def give_back(self) -> list[str]:
        self.given_back += 1
        return super().give_back()


class Extension:
    """The other end of the worker's channel; it sends ahead, the worker reads when it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._socket, theirs = socket.socketpair()
        self.channel = BlockingChannel(theirs, "worker")
        self._ours = BlockingChannel(self._socket, "extension")
        self.held: list[Watched] = []
        monkeypatch.setattr(process, "hold", self._hold)

    def _hold(self, parameters: ClaimParameters) -> Watched:
        self.held.append(Watched(parameters, create("loopback", {})))
        return self.held[-1]

    def say(self, command: Command, parameters: Message, descriptor: int) -> None:
        send_some(self._socket, request_frame(1, "extension", command, parameters), descriptor)

    def claim(self, budget: int) -> None:
        parameters = ClaimParameters(
            busid="sim-1",
            path="/simulated",
            busnum=1,
            devnum=1,
            simulated=SimulatedSpec("loopback", {}),
            run_as=None,
            log_level="info",
            transfer_budget=budget,
        )
        with tempfile.TemporaryFile() as page:
            page.truncate(COUNTER_PAGE_SIZE)
            self.say(Command.CLAIM, parameters, page.fileno())

    def close(self) -> None:
        self._ours.close()
        self.channel.close()


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Extension]:
    extension = Extension(monkeypatch)
    yield extension
    extension.close()


def test_a_claim_that_leads_to_nothing_is_undone(extension: Extension) -> None:
    extension.claim(budget=1000)
    with pytest.raises(ValueError, match="budget 1000 is below"):
        process._start(extension.channel)
    assert [held.given_back for held in extension.held] == [1]


def test_an_error_of_the_system_gives_the_device_back(extension: Extension) -> None:
    extension.claim(budget=_pump.SMALLEST_BUDGET)
    worker = process._start(extension.channel)
    with open(os.devnull, "rb") as no_socket:  # noqa: PTH123 - its descriptor is all we want
        extension.say(Command.ATTACH, AttachParameters(client="nobody"), no_socket.fileno())
    with pytest.raises(OSError, match="non-socket"):
        worker.run()
    assert [held.given_back for held in extension.held] == [1]
