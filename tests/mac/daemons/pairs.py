"""A few combinations of switches in which each value of a switch meets each value of each other switch."""

import functools
import itertools
from collections.abc import Mapping, Sequence

Choice = tuple[str, object]


def pairwise(values: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Rows with one of `values` for each name; the first row has all first values.

    Greedy: a row begins with a pair that no earlier row has, and gets for each other name the value that adds
    most such pairs.
    """
    choices = {name: [(name, value) for value in several] for name, several in values.items()}
    left = {
        frozenset(pair)
        for one, other in itertools.combinations(choices.values(), 2)
        for pair in itertools.product(one, other)
    }
    rows = [{name: several[0] for name, several in choices.items()}]
    while True:
        left -= {frozenset(pair) for pair in itertools.combinations(rows[-1].values(), 2)}
        if not left:
            return [dict(row.values()) for row in rows]
        row = {choice[0]: choice for choice in min(left, key=lambda pair: sorted(map(repr, pair)))}
        for name, several in choices.items():
            if name not in row:
                row[name] = max(several, key=functools.partial(_gain, row, left))
        rows.append(row)


def _gain(row: Mapping[str, Choice], left: set[frozenset[Choice]], choice: Choice) -> tuple[int, int]:
    """How many pairs of `left` it adds to the row; then, in how many it is."""
    return sum(frozenset((choice, other)) in left for other in row.values()), sum(
        choice in pair for pair in left
    )
