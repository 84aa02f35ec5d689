"""The steps of a scenario, and their reports.  Runs in the guest; pytest reads the names.

Each step prints one line, `ok NAME` or `not ok NAME: why`; other lines are diagnostics.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

Action = Callable[[], None]


class StepError(Exception):
    """A step found something unexpected; the message says what, and what was expected."""


@dataclass(frozen=True)
class Step:
    """A separate test.  If it fails, the rest of its `chain` is skipped; after "", all the rest."""

    name: str
    chain: str
    action: Action


class Scenario:
    """Steps in the order of their definition."""

    def __init__(self) -> None:
        self._steps: Final[list[Step]] = []

    @property
    def names(self) -> list[str]:
        """The names of the tests, one per step."""
        return [step.name for step in self._steps]

    def step(self, chain: str = "") -> Callable[[Action], Action]:
        """Makes a function a step: it passes if it returns, and fails if it raises."""

        def register(action: Action) -> Action:
            self.add(action.__name__, chain, action)
            return action

        return register

    def add(self, name: str, chain: str, action: Action) -> None:
        """The same with an explicit name: one action may be many steps."""
        self._steps.append(Step(name.replace("_", "-"), chain, action))

    def run(self) -> int:
        """Run the steps; the exit status is 1 if one failed.  After a failure its chain is skipped."""
        failed: dict[str, str] = {}
        for step in self._steps:
            cause = failed.get(step.chain) or failed.get("")
            if cause is not None:
                print(f"not ok {step.name}: not reached, since {cause} failed", flush=True)
                continue
            try:
                step.action()
            except Exception as error:  # every failure of a step is a result
                if not isinstance(error, StepError):
                    traceback.print_exc()
                why = str(error).strip() or type(error).__name__
                print(f"not ok {step.name}: {' / '.join(why.splitlines())}", flush=True)
                failed[step.chain] = step.name
            else:
                print(f"ok {step.name}", flush=True)
        return 1 if failed else 0


def check(condition: bool, why: str) -> None:
    """Raises `StepError` unless `condition` holds."""
    if not condition:
        raise StepError(why)
