"""The confinement of the server and the workers, checked from outside and from inside.  Runs in the guest.

From inside: code of a compromised process (tests/hostile.py) runs as a service with all the limits of the
installed one, confines itself as the product does, and tries what must be denied.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.e2e.guest.scenario import check
from tests.e2e.guest.server import credentials
from tests.e2e.guest.system import JOB, run
from tests.hostile import Plan, Result
from usbipd.ipc.children import Confinement
from usbipd.privileges import RunAs
from usbipd.worker_uids import DEFAULT_UIDS, parse_uids

ROOT: Final = Path(__file__).resolve().parents[3]
EMPTY: Final = Path("/run/usbipd/empty")
UNIT: Final = Path("/run/systemd/system/hostile.service")
OUTPUT: Final = JOB / "hostile.json"
LOG: Final = JOB / "hostile.log"

ONLY_THE_DAEMON: Final = (
    *("Type", "NotifyAccess", "ExecStart", "Restart", "StateDirectory", "RuntimeDirectory"),
    *("[Install]", "WantedBy"),
)
"""Prefixes of the settings that the hostile service changes or omits."""

Processes = list[dict[str, Any]]


def check_from_outside(processes: Processes) -> None:
    """Check the kernel's view of the server and of each worker."""
    filters = {each["role"]: int(credentials(each["pid"])["Seccomp_filters"]) for each in processes}
    networks = {"host": Path("/proc/self/ns/net").readlink()}
    for process in processes:
        role, pid = process["role"], process["pid"]
        if role == "extension":
            continue
        facts = credentials(pid)
        uids, gids = set(facts["Uid"].split()), set(facts["Gid"].split())
        check(len(uids) == len(gids) == 1, f"{role}: has uids {uids}, gids {gids}")
        uid, gid = int(uids.pop()), int(gids.pop())
        if role == "worker":
            check(uid in parse_uids(DEFAULT_UIDS) and gid == uid, f"{role}: is uid {uid}, gid {gid}")
            check(process["user"] == str(uid), f"{role}: is shown as {process['user']}")
        check(facts["Groups"] in ("", str(gid)), f"{role}: is in groups {facts['Groups']}")
        check(filters[role] > filters["extension"], f"{role}: has no filter besides the service's")
        root = Path(f"/proc/{pid}/root")
        check(root.readlink() == EMPTY and not [*root.iterdir()], f"{role}: its root is {root.readlink()}")
        network = Path(f"/proc/{pid}/ns/net").readlink()
        check(network not in networks.values(), f"{role}: shares its network namespace: {networks}")
        networks[f"{role} {pid}"] = network
        limits = Path(f"/proc/{pid}/limits").read_text()
        for limit in ("Max processes             0                    0", "Max core file size        0 "):
            check(limit in limits, f"{role}: is limited by\n{limits}")


def check_from_inside(unit: Path, processes: Processes) -> None:
    """`unit` is the installed one; `processes` are attacked and must be unaffected."""
    victims = {f"{each['role']} {each['pid']}": each["pid"] for each in processes}
    last = parse_uids(DEFAULT_UIDS)[-1]
    order = Confinement(run_as=RunAs(user=str(last), uid=last, gid=last), root=str(EMPTY))
    for accepts in (False, True):
        LOG.unlink(missing_ok=True)
        result = _run(unit, Plan(order=order, victims=victims, accepts=accepts, foreign=False))
        said = LOG.read_text()
        check("Landlock ABI 0" not in said and "seccomp in force" in said, f"a layer is missing: {said}")
        check(not result.succeeded, f"it can {', '.join(result.succeeded)}")
        check(not result.broken, f"acts that a worker needs failed: {result.broken}")
        check(len(result.refused) > 60, f"only {len(result.refused)} acts were tried")
    for who, pid in victims.items():
        state = credentials(pid)["State"]
        check(state[0] in "SR", f"{who} is now {state}")


def _run(unit: Path, plan: Plan) -> Result:
    lines = [line for line in unit.read_text().splitlines() if not line.startswith(ONLY_THE_DAEMON)]
    argument = msgspec.json.encode(plan).decode()
    quoted = json.dumps(argument.replace("%", "%%").replace("$", "$$"))
    lines += [
        "[Service]",
        "Type=oneshot",
        f"WorkingDirectory={ROOT}",
        f"StandardOutput=truncate:{OUTPUT}",
        f"StandardError=append:{LOG}",
        f"ExecStart={sys.executable} -m tests.hostile {quoted}",
    ]
    UNIT.write_text("\n".join(lines) + "\n")
    run("systemctl", "daemon-reload")
    try:
        run("systemctl", "start", UNIT.stem)
    finally:
        print(LOG.read_text())
        UNIT.unlink()
        run("systemctl", "daemon-reload")
    return msgspec.json.decode(OUTPUT.read_bytes(), type=Result)
