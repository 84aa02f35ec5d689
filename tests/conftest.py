"""What all tests share: the `rule` marker takes only names that stand in `tests/rules.py`."""

import pytest

from tests.rules import RULES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a rule that does not exist."""
    for item in items:
        for marker in item.iter_markers("rule"):
            unknown = [name for name in marker.args if name not in RULES]
            if unknown or not marker.args:
                raise pytest.UsageError(f"{item.nodeid}: no such rule in tests/rules.py: {unknown}")
