"""Chooses the user of each worker.  Runs in the extension.

It is the lowest id of the range that no process has: neither a worker of ours that is not reaped yet, nor a
worker that outlives its killed extension, nor any other program.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

from usbipd.confinement import WORKERS_ARE_CONFINED
from usbipd.errors import UsbipdError
from usbipd.extension.supervisor import Child
from usbipd.ipc.children import Confinement
from usbipd.privileges import RunAs

_PROC: Final = Path("/proc")


class WorkerConfinement:
    """What each worker gives up.

    `uids` are the ids to choose from, None unless we are root; `root` is the empty root directory.
    """

    def __init__(self, uids: range | None, root: Path) -> None:
        self._uids = uids
        self._root = root
        self._workers: dict[int, Child] = {}
        """The last worker with each id."""

    async def choose(self) -> Confinement | None:
        """For the next worker; None: it gives up nothing.  Call `given` before awaiting anything else.

        Raises `UsbipdError` if all ids are in use.
        """
        if not WORKERS_ARE_CONFINED:
            return None
        if self._uids is None:
            return Confinement(run_as=None, root=None)
        taken = await asyncio.to_thread(_uids_of_processes)
        taken |= {uid for uid, worker in self._workers.items() if not worker.ended.is_set()}
        uid = next((uid for uid in self._uids if uid not in taken), None)
        if uid is None:
            raise UsbipdError(
                f"all {len(self._uids)} user ids for workers are in use",
                code="no-uid",
                advice="give worker_uids in usbipd.toml a larger range: each shared device needs one",
            )
        return Confinement(run_as=RunAs(user=str(uid), uid=uid, gid=uid), root=str(self._root))

    def given(self, confinement: Confinement | None, worker: Child) -> None:
        """`worker` was started for it: its id is in use until that worker has ended."""
        if confinement is not None and confinement.run_as is not None:
            worker.run_as = confinement.run_as
            self._workers[confinement.run_as.uid] = worker


def _uids_of_processes() -> set[int]:
    """Real, effective, saved and file system user ids of all processes.

    Not the owners of their directories: that is root for a process that has changed its user.
    """
    found: set[int] = set()
    for name in os.listdir(_PROC):  # noqa: PTH208 - names are all we need
        if name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended
                status = (_PROC / name / "status").read_bytes()
                found.update(map(int, status.partition(b"\nUid:")[2].split(b"\n", 1)[0].split()))
    return found
