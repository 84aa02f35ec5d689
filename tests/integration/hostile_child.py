"""Compromised server and workers: they speak the real protocol over their real channel and abuse it.

A separate program: the daemon of `HostileDaemon` executes it instead of Python for each child.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from tests.integration.daemon import Daemon
from usbipd.confinement import OPEN_FILES_OF_A_WORKER
from usbipd.errors import UsbipdError
from usbipd.ipc import async_channel
from usbipd.ipc.children import AttachParameters, DetachedParameters
from usbipd.ipc.conversation import Request, event_frame
from usbipd.ipc.message import Message
from usbipd.ipc.messages import Command, EventName, Nothing

HOSTILE: Final = "\x1b]0;owned\x07\x1b[2J\r\nforged \u202e\u2028\x9b31m"
ERROR: Final = UsbipdError(HOSTILE, code=HOSTILE, advice=HOSTILE)

_PROGRAM: Final = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.integration.hostile_child import main
main({how!r}, sys.argv[4:])
"""


class HostileDaemon(Daemon):
    """A daemon whose children are hostile; `how` is a key of `_WORKERS`."""

    def __init__(self, directory: Path, how: str, simulate: str) -> None:
        program = directory / "child"
        root = str(Path(__file__).parents[2])
        program.write_text(_PROGRAM.format(python=sys.executable, root=root, how=how))
        program.chmod(0o755)
        enter = "from usbipd.__main__ import main; sys.exit(main())"
        start = f"import sys; sys.argv[0] = 'usbipd-ext'; sys.executable = {str(program)!r}; {enter}"
        self.command = [sys.executable, "-c", start]
        super().__init__(directory, simulate)


def main(how: str, arguments: list[str]) -> NoReturn:
    """Run the server or the worker that `arguments` choose."""
    role, *rest = arguments
    if role == "@server":
        from usbipd.server import process as server

        _lie_about_clients()
        sys.exit(server.main(rest))
    _be_worker(how, rest)


def _lie_about_clients() -> None:
    """The server sends hostile names of clients."""
    honest = async_channel.request_frame

    def frame(
        request_id: int, client_id: str, command: Command, parameters: Message, *, descriptor: bool = False
    ) -> bytes:
        if "client" in parameters.__struct_fields__:
            parameters = msgspec.structs.replace(parameters, client=HOSTILE)
        return honest(request_id, client_id, command, parameters, descriptor=descriptor)

    async_channel.request_frame = frame


def _be_worker(how: str, arguments: list[str]) -> NoReturn:
    # here: the server does not need it
    from usbipd.worker import process

    class Worker(process.Worker):
        def _attach(self, client: object, parameters: AttachParameters) -> None:
            super()._attach(client, parameters)  # type: ignore[arg-type]
            if how == "floods":  # with an event that is allowed once
                self._channel.push(EventName.DETACHED, DetachedParameters(reason="begin"))
                flood = event_frame(EventName.RESTORED, Nothing()) * 500
                while True:
                    self._channel._connection.sendall(flood)
            if how == "shrinks":  # the memory that the extension reads
                for descriptor in range(4, OPEN_FILES_OF_A_WORKER):
                    for size in (1 << 40, 0):
                        with contextlib.suppress(OSError):
                            os.ftruncate(descriptor, size)
                assert self._client is not None
                self._client.sendall(b"done")
                while self._channel.receive() is not None:  # its pump would crash
                    pass
                os._exit(0)
            if how == "spins":
                while True:
                    pass

        def _disconnect(self, request: Request) -> None:
            self._close_client()
            self._channel.push(EventName.DETACHED, DetachedParameters(reason=HOSTILE + "A" * 60_000))
            self._channel.respond(request, ERROR)
            self._channel.push(EventName.RESTORED, Nothing())

    first = Path(sys.argv[0]).with_name(f"first-{arguments[0]}")
    if first.exists() and how == "lies":  # the first worker of a device claims it, later ones do not
        process.hold_device = _refuse
    first.touch()
    process.Worker = Worker  # type: ignore[misc]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os._exit(process.main(arguments))


def _refuse(_parameters: object) -> NoReturn:
    raise ERROR
