"""The service for one user of this host while another floods the extension."""

import os

import pytest

from tests.integration.conftest import StartDaemon
from tests.integration.daemon import until
from tests.local_flood import AT_ONCE, CONNECTIONS, LocalFlood
from usbipd.cli.connection import ControlConnection
from usbipd.ipc.control_messages import BindParameters, BindResult, ListResult
from usbipd.ipc.messages import Command, Nothing

OTHER_UID = 54321

FEW = CONNECTIONS * AT_ONCE // 4
"""Answers to the other user for which one of our answers may wait; its queue has four times as many."""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_flooding_user_delays_another_by_few_answers(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(",".join(["loopback"] * 8))
    with LocalFlood(daemon.directory, OTHER_UID) as flood, ControlConnection(str(daemon.socket)) as extension:
        until(lambda: flood.answers() > CONNECTIONS)
        extension.open()
        for _number in range(5):
            before = flood.answers()
            listed = extension.request(Command.LIST, Nothing(), ListResult)
            assert len(listed.devices) == 8
            assert flood.answers() - before < FEW
        before = flood.answers()
        extension.request(Command.BIND, BindParameters(busid="240-8"), BindResult)
        assert flood.answers() - before < FEW
        assert daemon.usbipd("list").returncode == 0
