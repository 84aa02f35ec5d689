"""What one user of this host gets while another one asks the extension for all that it can."""

import os

import pytest

from tests.integration.conftest import StartDaemon
from tests.integration.daemon import until
from tests.local_flood import AT_ONCE, CONNECTIONS, LocalFlood
from usbipd.cli.connection import ControlConnection
from usbipd.ipc.control_messages import BindParameters, BindResult, ListResult
from usbipd.ipc.messages import Command, Nothing

SOMEBODY = 54321

FEW = CONNECTIONS * AT_ONCE // 4
"""Answers to another user that ours may wait for, with all that happens beside it; those that it had asked
for before are four times as many."""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_user_that_floods_delays_another_by_few_answers(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(",".join(["loopback"] * 8))
    with LocalFlood(daemon.directory, SOMEBODY) as flood, ControlConnection(str(daemon.socket)) as extension:
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
