"""What a row of `make bench` says of its samples."""

import pytest

from tests.bench.result import Comparison


def test_the_ratio_is_the_median_of_the_turns() -> None:
    row = Comparison("x", "s", (1.0, 4.0, 9.0), (1.0, 2.0, 3.0), "y", target=2.0)
    assert row.ratio == 2.0
    assert row.spread == pytest.approx((3 - 1) / 2)
    assert row.is_met


def test_each_boot_counts_once() -> None:
    """A turn that went wrong leaves no trace; a boot that is different does in the spread."""
    ours = (1.0, 1.0, 7.0, 2.0, 2.0, 2.0, 3.0, 0.0, 3.0)
    row = Comparison("x", "s", ours, (1.0,) * 9, "y", boots=3)
    assert row.by_boot == [1.0, 2.0, 3.0]
    assert row.ratio == 2.0
    assert row.spread == pytest.approx((3 - 1) / 2)


def test_nothing_at_all_has_no_spread() -> None:
    row = Comparison("packets lost", "packets", (0.0, 0.0), (8000.0, 8000.0), "the bus")
    assert (row.ratio, row.spread) == (0.0, 0.0)
