"""What `make bench` measures: ours beside a reference, in turns in one run.  Runs in the bench's own process.

Rates differ from machine to machine, ratios do not: a target is a ratio of two medians.
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
    ours, reference: one sample for each turn, in the order in which they were taken; at least one each.
    against: what the reference is, such as "null server (batch)".
    target: the ratio that is wanted, ours / reference; None: there is no target.
    direction: whether the ratio has to be at least or at most `target`.
    """

    what: str
    unit: str
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    against: str
    target: float | None = None
    direction: Direction = "at least"

    @property
    def ratio(self) -> float:
        """Median of ours / median of the reference."""
        return median(self.ours) / median(self.reference)

    @property
    def spread(self) -> float:
        """How far the samples lie apart, (highest - lowest) / median, on the side where it is more."""
        return max((max(each) - min(each)) / median(each) for each in (self.ours, self.reference))

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
        return self.worst <= self.limit
