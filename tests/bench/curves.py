"""How cost grows: with depth, with size, with the number of devices.  Runs in the bench."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench.devices import all_processors, run_together
from tests.bench.loopback import SEND_BUFFER, both
from tests.bench.programs import Load, Outcome, Server, daemon, run_load, servers_of
from tests.bench.result import Curve

DEPTHS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES: Final = tuple(4**k for k in range(11))
DEVICES: Final = (1, 2, 4, 8, 16, 32)
SIDES: Final = ("usbipd", "null server")

Points = list[tuple[float, Outcome]]


def draw(work: Path, turns: int, seconds: float) -> list[Curve]:
    """All curves; every point is the median of `turns` runs of `seconds`."""
    loads = [(depth, Load("control", 18, depth, seconds)) for depth in DEPTHS]
    by_depth = _both_sides(work, 0, loads, turns)
    curves = [
        Curve("Control 18 B by depth", "URBs in flight", "URB/s", _lines(by_depth, lambda each: each.urbs_s)),
        Curve(
            "CPU of the server by depth, control 18 B",
            "URBs in flight",
            "us/URB",
            _lines(by_depth, lambda each: each.server_cpu_us),
        ),
        Curve(
            "99th percentile of the latency by depth, control 18 B",
            "URBs in flight",
            "us",
            _lines(by_depth, lambda each: each.p99_us),
        ),
    ]
    by_size: dict[str, Points] = {}
    for kind, name in (("bulk-in", "IN"), ("bulk-out", "OUT")):
        sizes = [(size, Load(kind, size, 32, seconds)) for size in SIZES]  # type: ignore[arg-type]
        for side, points in _both_sides(work, SEND_BUFFER, sizes, turns).items():
            by_size[f"{side}, {name}"] = points
    title = f"Bulk by size, depth 32, SO_SNDBUF {SEND_BUFFER}"
    curves.append(Curve(title, "bytes of an URB", "MB/s", _lines(by_size, lambda each: each.MB_s)))
    curves.append(_by_devices(work, turns, seconds))
    return curves


def _both_sides(
    work: Path, send_buffer: int, loads: Sequence[tuple[int, Load]], turns: int
) -> dict[str, Points]:
    with ExitStack() as stack:
        servers = dict(zip(SIDES, both(stack, work, send_buffer), strict=True))
        points: dict[str, Points] = {side: [] for side in SIDES}
        for x, load in loads:
            for side, outcome in _medians(work, servers, load, turns).items():
                points[side].append((x, outcome))
        return points


def _medians(work: Path, servers: dict[str, Server], load: Load, turns: int) -> dict[str, Outcome]:
    """Of each server the run whose rate is the median, taken in turns."""
    runs: dict[str, list[Outcome]] = {side: [] for side in servers}
    for _ in range(turns):
        for side, server in servers.items():
            runs[side].append(run_load(work, server, load))
    return {side: sorted(each, key=lambda run: run.urbs_s)[turns // 2] for side, each in runs.items()}


def _lines(
    points: dict[str, Points], value: Callable[[Outcome], float]
) -> dict[str, list[tuple[float, float]]]:
    return {name: [(x, value(outcome)) for x, outcome in each] for name, each in points.items()}


def _by_devices(work: Path, turns: int, seconds: float) -> Curve:
    load = Load("control", 18, 32, seconds)
    series: dict[str, list[tuple[float, float]]] = {"all devices": [], "the slowest": []}
    with daemon(",".join(["loopback"] * max(DEVICES)), processors=all_processors()) as many:
        servers = servers_of(many)
        for number in DEVICES:
            runs = [
                [each.urbs_s for each in run_together(work, servers[:number], load)] for _ in range(turns)
            ]
            series["all devices"].append((number, median(sum(run) for run in runs)))
            series["the slowest"].append((number, median(min(run) for run in runs)))
    return Curve("Control 18 B, depth 32, all processors", "devices at once", "URB/s", series)
