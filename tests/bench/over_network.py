"""Several uses of one device beside each other, over a network.  Runs in the bench, as root.

One connection carries all transfers of a device.  So an answer waits behind what is on its way: at least what
the network holds; at worst, if the server answers in the order in which URBs end, all that the client has in
flight.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.bench import network
from tests.bench.devices import all_processors
from tests.bench.network import Conditions, Network, congestion_controls
from tests.bench.programs import before_all_else, daemon, null_server
from tests.bench.result import Comparison
from tests.bench.streams import (
    MICROFRAMES,
    BulkIn,
    Control,
    InterruptEcho,
    IsochronousIn,
    Latency,
    Once,
    Stream,
    Traffic,
)
from tests.client import Client

KIB: Final = 1024

NEAR: Final = Conditions(rtt_ms=1)
"""A wired network in a house."""
FAR: Final = Conditions(rtt_ms=20, loss=0.001)
"""A line to another house, or bad radio."""
FAR_CONTROLS: Final = ("cubic", "bbr")
"""Congestion controls: Linux's default, and one that does not take a lost packet for a full network."""

TURNS: Final = 3
"""At most: a turn takes a minute."""
LONGER: Final = 8
"""A run is so many times as long as elsewhere in the bench: here one answer may take a second."""
WARM_UP: Final = 2.0
"""Seconds until TCP has found its rate and all queues are as they stay."""
STALL_MS: Final = 200

FLOODS: Final[Mapping[str, Callable[[], BulkIn]]] = {
    "bulk IN 32 x 64 KiB": lambda: BulkIn(64 * KIB, 32),
    "bulk IN 8 x 1 MiB": lambda: BulkIn(1024 * KIB, 8),
}
FLOOD: Final = next(iter(FLOODS))
"""The one that most rows have."""


@dataclass(frozen=True)
class Device:
    """One device of a server at the other end of a network."""

    network: Network
    port: int
    busid: str

    def use(self, streams: Sequence[Stream], seconds: float) -> float:
        """For all of these at once; returns the seconds that counted."""
        with self.network.client_side():
            session = Client(network.SERVER, self.port, timeout=30).import_device(self.busid)
        with session:
            return Traffic(session, streams).run(WARM_UP, seconds)


@contextmanager
def our_device(work: Path, conditions: Conditions, turn: int) -> Iterator[Device]:
    """The simulated loopback of a daemon."""
    everywhere = all_processors()
    with (
        before_all_else(),
        Network(work, conditions, seed=turn + 1) as link,
        link.server_side(),
        daemon(processors=everywhere, address=network.SERVER) as running,
    ):
        with link.client_side():
            busid = running.busid("loopback")
        yield Device(link, running.port, busid)


@contextmanager
def null_device(work: Path, conditions: Conditions, turn: int) -> Iterator[Device]:
    """That of the null server, which can do nothing but bulk."""
    with (
        before_all_else(),
        Network(work, conditions, seed=turn + 1) as link,
        link.server_side(),
        null_server(work, address=network.SERVER, processors=all_processors()) as server,
    ):
        yield Device(link, server.port, server.busid)


class Rows:
    """Samples of one part, by what they are."""

    def __init__(self, part: str, conditions: Conditions) -> None:
        self._title = f"{part}, {conditions.congestion_control}"
        self._samples: defaultdict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)

    def note(self, what: str, unit: str, sample: float, reference: float, against: str) -> None:
        """One turn of a row."""
        self._samples[what, unit, against].append((sample, reference))

    def comparisons(self) -> list[Comparison]:
        return [
            Comparison(
                f"{self._title}: {what}",
                unit,
                tuple(ours for ours, _ in samples),
                tuple(reference for _, reference in samples),
                against,
            )
            for (what, unit, against), samples in self._samples.items()
        ]


def mixed(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """Keys and sound beside a disk, on a network that is near.  `work` has the null server."""
    network.build(work)
    return _compare("mixed", work, turns, seconds, NEAR, FLOODS)


def lossy(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """The same on a network that is far and loses packets, by congestion control."""
    network.build(work)
    return [
        row
        for control in FAR_CONTROLS
        if control in congestion_controls()
        for row in _compare(
            "lossy", work, turns, seconds, replace(FAR, congestion_control=control), {FLOOD: FLOODS[FLOOD]}
        )
    ]


def stall(work: Path, turns: int, seconds: float) -> list[Comparison]:
    """Sound while the network stands still once, and while it does not."""
    network.build(work)
    rows = Rows("stall", NEAR)
    for turn in range(turns):
        with our_device(work, NEAR, turn) as device:
            for stalled in (False, True):
                sound = IsochronousIn()
                once = [Once(seconds / 2, lambda: device.network.stall(STALL_MS))] if stalled else []
                took = device.use([sound, *once], seconds + STALL_MS / 1000)
                if stalled:
                    what, carried = f"isochronous IN lost to {STALL_MS} ms", MICROFRAMES * STALL_MS / 1000
                    rows.note(what, "packets", sound.lost, carried, "packets that the bus has meanwhile")
                else:
                    what = "isochronous IN lost without a stall"
                    rows.note(what, "packets/s", sound.lost / took, MICROFRAMES, "packets/s of the bus")
    return rows.comparisons()


def _compare(
    part: str,
    work: Path,
    turns: int,
    seconds: float,
    conditions: Conditions,
    floods: Mapping[str, Callable[[], BulkIn]],
) -> list[Comparison]:
    rows = Rows(part, conditions)
    seconds *= LONGER
    for turn in range(min(turns, TURNS)):
        with our_device(work, conditions, turn) as device:
            alone = _latencies(device, [], seconds)
            for name, flood in floods.items():
                for latency, reference in zip(_latencies(device, [flood()], seconds), alone, strict=True):
                    for percent in (50, 99):
                        rows.note(
                            f"{latency.name} beside {name}, p{percent}",
                            "ms",
                            1000 * latency.percentile(percent),
                            1000 * reference.percentile(percent),
                            "alone",
                        )
            for place, beside in (("alone", []), (f"beside {FLOOD}", [FLOODS[FLOOD]()])):
                sound = IsochronousIn()
                took = device.use([sound, *beside], seconds)
                rows.note(
                    f"isochronous IN {place}",
                    "packets/s",
                    sound.packets / took,
                    MICROFRAMES,
                    "packets/s of the bus",
                )
            rate = _rate(device, seconds)
        with null_device(work, conditions, turn) as device:
            rows.note(FLOOD, "MB/s", rate, _rate(device, seconds), "null server (batch)")
    return rows.comparisons()


def _latencies(device: Device, beside: Sequence[Stream], seconds: float) -> Sequence[Latency]:
    latencies = (InterruptEcho(), Control())
    device.use([*beside, *latencies], seconds)
    return latencies


def _rate(device: Device, seconds: float) -> float:
    """MB/s of the flood with nothing beside it."""
    flood = FLOODS[FLOOD]()
    took = device.use([flood], seconds)
    return flood.bytes / took / 1e6
