"""`python -m tests.mac.kernel SOCKET`: the kernel of a software Mac as a separate process.

It prints `ready` once processes can connect.  With --parent it exits at end of file on stdin, and removes the
directory of its socket.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from tests.mac.kernel.kernel import Kernel


async def run(path: Path, *, ends_with_input: bool) -> None:
    kernel = Kernel()
    loop = asyncio.get_running_loop()
    serving = asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    if ends_with_input:
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def watch() -> None:
            await reader.read()
            serving.cancel()

        kernel.spawn(watch())
    await kernel.serve(path, lambda: print("ready", flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mac.kernel", description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--parent", action="store_true")
    arguments = parser.parse_args()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run(arguments.socket, ends_with_input=arguments.parent))
    arguments.socket.unlink(missing_ok=True)
    if arguments.parent:
        with contextlib.suppress(OSError):  # its parent may have removed it or added files
            arguments.socket.parent.rmdir()


if __name__ == "__main__":
    main()
