"""Output of the commands that is longer than one message between processes."""

import json
import signal
import subprocess
from pathlib import Path

from tests.integration.conftest import StartDaemon
from tests.integration.daemon import COMMAND, PATIENCE, Lines
from usbipd.cli.connection import ControlConnection
from usbipd.ipc.control_messages import BindParameters, BindResult, HardwareId
from usbipd.ipc.messages import MAX_MESSAGE, Command

BINDINGS = 40
NETWORKS = [f"2001:db8:aaaa:bbbb:cccc:dddd:{number:x}:0/112" for number in range(0xF000, 0xF040)]


def test_every_command(start_daemon: StartDaemon, tmp_path: Path) -> None:
    # with this host's devices, of which none matches: only then can absent devices be bound
    daemon = start_daemon("loopback,keyboard", "", "--real-devices", "--state", str(tmp_path / "state"))
    with ControlConnection(str(daemon.socket)) as extension:
        extension.open()
        for number in range(BINDINGS):
            hardware = HardwareId(vendor_id=1, product_id=number)
            extension.request(Command.BIND, BindParameters(hardware=hardware, allow=NETWORKS), BindResult)
    listed = daemon.usbipd("list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout) > 2 * MAX_MESSAGE
    bindings = json.loads(listed.stdout)["bindings"]
    assert {binding["product_id"] for binding in bindings if binding["vendor_id"] == 1} == set(
        range(BINDINGS)
    )
    assert daemon.status()["bindings"] == bindings
    assert daemon.document("status")["status"]["bindings"] == bindings
    table = daemon.usbipd("list")
    assert table.stdout.count("\n0001:00") == BINDINGS, table.stderr
    assert daemon.usbipd("status").returncode == 0
    checks = daemon.document("doctor")["checks"]
    assert "binding" in {check["name"] for check in checks}
    watching = [*COMMAND, "--status", "--watch", "--json", "--socket", str(daemon.socket)]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        output = Lines(watch.stdout)
        try:
            assert json.loads(output.wait_for("format"))["status"]["bindings"] == bindings
            since = output.position()
            gone = daemon.document("unbind", "--all")
            assert len(gone["bindings"]) == 2 + BINDINGS
            assert gone["busids"] == ["240-1", "240-2"]
            output.wait_for('"bindings":[]', since)
            watch.send_signal(signal.SIGINT)
            assert watch.wait(PATIENCE) == 128 + signal.SIGINT
        finally:
            watch.kill()
    for name in ("240-1", "240-2"):  # the end of a test checks the workers of all devices
        assert daemon.usbipd("bind", "--busid", name).returncode == 0
