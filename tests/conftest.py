"""Setup shared by all tests: an `async def` test runs in its own loop; the `rule` marker takes only names
from `tests/rules.py`; hypothesis's profiles; and processes started here can be interrupted.

Examples have no deadline: on a slow machine they would fail without a fault.  `make test` uses the same
examples each time, so that a failure is due to a change; `--hypothesis-profile=fuzz` is for `make fuzz`: it
generates FUZZ_EXAMPLES new examples of each property, and prints how to reproduce a failure
(`@reproduce_failure`).
"""

import asyncio
import inspect
import os
import signal
import sys
from typing import Final

import pytest
from hypothesis import settings

from tests.rules import RULES

settings.register_profile("test", deadline=None, derandomize=True)
settings.register_profile(
    "fuzz", deadline=None, print_blob=True, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "2000"))
)
settings.load_profile("test")

# $TMPDIR is long on a Mac: the path of a control socket below it would be too long (`MAX_SOCKET_PATH`).
if sys.platform == "darwin":
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/tmp")

# A shell makes background processes ignore SIGINT, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST: Final = 90.0
"""Seconds that one asynchronous test may take."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is a coroutine function."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters

    async def bounded() -> None:
        async with asyncio.timeout(LONGEST):
            await pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})

    asyncio.run(bounded())
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a rule that does not exist."""
    for item in items:
        for marker in item.iter_markers("rule"):
            unknown = [name for name in marker.args if name not in RULES]
            if unknown or not marker.args:
                raise pytest.UsageError(f"{item.nodeid}: no such rule in tests/rules.py: {unknown}")
