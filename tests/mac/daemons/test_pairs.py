"""What `pairs.py` promises."""

import itertools

import pytest

from tests.mac.daemons.pairs import pairwise


@pytest.mark.parametrize("counts", [[2], [2, 2], [2] * 15, [2, 3, 2, 3, 4], [3] * 8])
def test_every_value_meets_every_other_one(counts: list[int]) -> None:
    values = {f"switch{number}": range(count) for number, count in enumerate(counts)}
    rows = pairwise(values)
    assert all(row.keys() == values.keys() for row in rows)
    for (one, ones), (other, others) in itertools.combinations(values.items(), 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(ones, others))
    assert rows[0] == dict.fromkeys(values, 0)


def test_the_rows_are_few_and_always_the_same() -> None:
    values = {f"switch{number}": (False, True) for number in range(15)}
    assert pairwise(values) == pairwise(values)
    assert len(pairwise(values)) <= 12
