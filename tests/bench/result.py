"""What `make bench` measures: ours beside a reference, in turns in one run.  Runs in the bench.

Rates differ from machine to machine, ratios do not.  The two samples of a turn are taken one after the other,
so that what else the machine does meets both: the figure is the median of the turns' ratios.
"""

from dataclasses import dataclass
from statistics import median
from typing import Literal

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Comparison:
    """One row of the report.

    what: what was measured, as a reader would say it.
    unit: of the samples: "URB/s", "MB/s", "us/URB", "s".
    ours, reference: one sample for each turn, in the order in which they were taken; as many of one as of the
        other, at least one.
    against: what the reference is, such as "null server (batch)".
    target: the ratio that is wanted, ours / reference; None: there is no target.
    direction: whether the ratio has to be at least or at most `target`.
    boots: how many boots of a machine the samples are from, equally many of each, one boot after the other.
        What is decided at a boot, such as where buffers lie, is the same in all its turns.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    against: str
    target: float | None = None
    direction: Direction = "at least"
    boots: int = 1

    @property
    def ratio(self) -> float:
        """The median of the turns' ratios; of several boots, the median of their medians."""
        return median(self.by_boot)

    @property
    def by_boot(self) -> list[float]:
        """The median of the turns' ratios, of each boot."""
        turns = len(self.ours) // self.boots
        return [median(self.ratios[first : first + turns]) for first in range(0, len(self.ours), turns)]

    @property
    def ratios(self) -> list[float]:
        """ours / reference, for each turn."""
        return [ours / reference for ours, reference in zip(self.ours, self.reference, strict=True)]

    @property
    def spread(self) -> float:
        """How far the ratios of the turns, or of several boots, lie apart: (highest - lowest) / median."""
        ratios = self.ratios if self.boots == 1 else self.by_boot
        return (max(ratios) - min(ratios)) / self.ratio if self.ratio else 0.0

    @property
    def is_met(self) -> bool | None:
        """None: there is no target."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.direction == "at least" else self.ratio <= self.target


@dataclass(frozen=True)
class Bound:
    """One row that is held against a fixed number, where a ratio would say nothing: what is wanted may be 0.

    what, unit: as those of `Comparison`.
    ours: one sample or more; each of them counts.
    limit: the most that is allowed.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    limit: float

    @property
    def worst(self) -> float:
        return max(self.ours)

    @property
    def is_met(self) -> bool:
        """Every sample is within the limit."""
        return self.worst <= self.limit


@dataclass(frozen=True)
class Curve:
    """How something grows: one plot, with a line for each series.

    x, y: what the axes show, with their units.
    series: by name, points (x, y) in ascending order of x.
    """

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]


Result = Comparison | Bound | Curve
