"""docs/macos-acceptance.md has a question for each switch of the software Mac."""

import re
from dataclasses import fields
from pathlib import Path

from tests.mac.kernel.switches import Switches

TEXT = (Path(__file__).parents[2] / "docs" / "macos-acceptance.md").read_text()
NAMES = {field.name for field in fields(Switches)}


def test_each_switch_is_a_question() -> None:
    asked = re.findall(r"(?m)^\| [^|]*\? \| `(\w+)` \|", TEXT)
    assert sorted(asked) == sorted(NAMES)


def test_claims_name_switches_that_exist() -> None:
    named = {name for cell in re.findall(r"yes \((`[^)]*)\)", TEXT) for name in re.findall(r"`(\w+)`", cell)}
    assert named
    assert named <= NAMES
