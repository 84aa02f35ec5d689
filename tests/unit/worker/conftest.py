"""The rig of tests that do not depend on the kind of device."""

from collections.abc import Iterator

import pytest

from tests.unit.worker.rig import Rig


@pytest.fixture(params=[False, True], ids=["", "as_on_macos"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(as_on_macos=request.param)
    yield rig
    rig.close()
