"""Pairwise combinations: rows of values that contain each pair of values of two switches.  Runs in tests."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Final

Pair = tuple[tuple[int, int], tuple[int, int]]
"""Two columns, each with the number of a value."""

TRIES: Final = 40
"""Candidates, of which the best becomes a row."""


def pairwise(values: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """A small, reproducible set of rows with one value for each name that contains all pairs."""
    names = list(values)
    missing = {
        ((one, a), (other, b))
        for one, other in itertools.combinations(range(len(names)), 2)
        for a in range(len(values[names[one]]))
        for b in range(len(values[names[other]]))
    }
    dice = random.Random(0)
    rows: list[dict[str, object]] = []
    while missing:
        tries = [_row(values, names, missing, dice) for _ in range(TRIES)]
        row = max(tries, key=lambda each: len(missing & set(itertools.combinations(sorted(each.items()), 2))))
        missing -= set(itertools.combinations(sorted(row.items()), 2))
        rows.append({names[column]: values[names[column]][value] for column, value in sorted(row.items())})
    return rows


def _row(
    values: Mapping[str, Sequence[object]], names: Sequence[str], missing: set[Pair], dice: random.Random
) -> dict[int, int]:
    """For each column, in any order, the value that covers the most missing pairs with earlier columns."""
    row = dict(dice.choice(sorted(missing)))
    columns = [column for column in range(len(names)) if column not in row]
    dice.shuffle(columns)
    for column in columns:
        gains = [
            sum(tuple(sorted(((column, value), each))) in missing for each in row.items())
            for value in range(len(values[names[column]]))
        ]
        row[column] = gains.index(max(gains))
    return row
