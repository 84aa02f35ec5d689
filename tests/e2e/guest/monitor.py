"""QEMU's monitor: changes this machine's hardware from inside.  Runs in the guest.

It is reached through a virtio port.  The protocol is QMP, lines of JSON (QEMU, "QEMU Machine Protocol
Specification").
"""

import json
import os
from pathlib import Path
from typing import Any, Final

from tests.e2e.guest.scenario import StepError

PORTS: Final = Path("/sys/class/virtio-ports")
NAME: Final = "e2e.monitor"  # vm/machine.py


class Monitor:
    """The monitor of this machine."""

    def __init__(self) -> None:
        node = next(path.name for path in PORTS.iterdir() if (path / "name").read_text().strip() == NAME)
        self._port = os.fdopen(os.open(Path("/dev", node), os.O_RDWR), "r+b", buffering=0)
        self._port.readline()  # its greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """The result of `command`; `_` in the names of `arguments` stands for `-`.  Raises `StepError`."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._port.write(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
        while True:
            answer = json.loads(self._port.readline())
            if "error" in answer:
                raise StepError(f"QEMU refuses {command} {named}: {answer['error']['desc']}")
            if "return" in answer:  # the rest are events
                print(f"monitor: {command} {named}", flush=True)
                return answer["return"]
