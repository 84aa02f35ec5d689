"""Chooses the confinement and the user of each worker.  Runs in the extension.

A worker gets the lowest uid of the range that no process uses: neither a worker that is not reaped yet, nor a
worker that outlives its killed extension, nor any other program.
"""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Final

import psutil

from usbipd.errors import UsbipdError
from usbipd.extension.supervisor import Child
from usbipd.ipc.children import USELESS_WHEN_CONFINED, Confinement, Sandbox
from usbipd.privileges import RunAs

_LOG: Final = logging.getLogger(__name__)


class WorkerConfinement:
    """The confinement of each worker.

    `uids` are the ids to choose from, None unless we are root; `root` is the empty root directory; `confine`
    is the key of the configuration.
    """

    def __init__(self, uids: range | None, root: Path, confine: Sandbox = "auto") -> None:
        self._uids = uids
        self._root = root
        self._confine = confine
        self._workers: dict[int, Child] = {}
        """The last worker with each id."""
        self._relaxed: set[str] = set()
        """Busids of devices that a fully confined worker could not use."""
        self._logged: set[str] = set()

    async def choose(self, busid: str) -> Confinement | None:
        """The confinement of the next worker of this port; None: none.

        Call `assign` before awaiting anything else.  Raises `UsbipdError` if all uids are in use.
        """
        if self._confine == "off":
            return None
        sandbox = "off" if busid in self._relaxed else self._confine
        if self._uids is None:
            return Confinement(run_as=None, root=None, sandbox=sandbox)
        taken = await asyncio.to_thread(_uids_of_processes)
        taken |= {uid for uid, worker in self._workers.items() if not worker.ended.is_set()}
        uid = next((uid for uid in self._uids if uid not in taken), None)
        if uid is None:
            raise UsbipdError(
                f"all {len(self._uids)} user ids for workers are in use",
                code="no-uid",
                advice="set a larger range for worker_uids in usbipd.toml: each shared device needs one",
            )
        root = None if busid in self._relaxed else str(self._root)
        return Confinement(run_as=RunAs(user=str(uid), uid=uid, gid=uid), root=root, sandbox=sandbox)

    def assign(self, confinement: Confinement | None, worker: Child) -> None:
        """`worker` was started with `confinement`: its uid is in use until the worker has ended."""
        if confinement is not None and confinement.run_as is not None:
            worker.run_as = confinement.run_as
            self._workers[confinement.run_as.uid] = worker

    def relax(self, busid: str, error: UsbipdError) -> bool:
        """Confine the next worker of this port less if `error` is the reason; returns whether it will be.

        It gets neither chroot nor sandbox, but still drops root: else a device could gain a root worker by
        failing at the right moment.
        """
        if error.code != USELESS_WHEN_CONFINED or self._confine != "auto" or busid in self._relaxed:
            return False
        self._relaxed.add(busid)
        _LOG.warning("%s: %s: retrying without chroot and sandbox", busid, error.message)
        return True

    def is_confined(self, worker: Child, lacks: str | None) -> None:
        """`worker` has claimed its device and reports what its confinement lacks; log each reason once."""
        if lacks is None and worker.busid in self._relaxed:
            lacks = "no chroot and no sandbox: its device did not work with them"
        worker.lacks = lacks
        if lacks is not None and lacks not in self._logged:
            self._logged.add(lacks)
            _LOG.warning("%s: confinement: %s", worker.label, lacks)


def _uids_of_processes() -> set[int]:
    """Real, effective and saved user ids of all processes; blocks for some milliseconds."""
    found: set[int] = set()
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):  # it has ended
            found.update(psutil.Process(pid).uids())
    return found
