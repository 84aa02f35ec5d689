"""Every rule of the wire has a test that names it."""

import re
from pathlib import Path

from tests.rules import PENDING, RULES

TESTS = Path(__file__).parents[1]
RULE = re.compile(r'\brule\("([^"]+)"\)')


def named_rules() -> set[str]:
    """The rules that any test or guest script names."""
    sources = [path for folder in ("unit", "integration") for path in (TESTS / folder).rglob("*.py")]
    sources += [path for path in (TESTS / "e2e").rglob("*") if path.suffix in (".py", ".sh")]
    return {name for path in sources for name in RULE.findall(path.read_text())}


def test_every_rule_has_a_test() -> None:
    untested = RULES.keys() - named_rules()
    assert untested == PENDING.keys()


def test_every_named_rule_exists() -> None:
    assert named_rules() <= RULES.keys()


def test_pending_rules_say_why() -> None:
    assert all(PENDING.values())
