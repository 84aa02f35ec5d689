"""The worker's parts with all pairs of values of switches."""

from collections.abc import Callable

import pytest

from tests.mac.kernel import errors
from tests.mac.pairs import pairwise

VALUES = {
    "macos_version": ("15.4.0", "12.7.6", "26.0.1"),
    "clear_stall_code": (errors.TRANSACTION_RETURNED, errors.ABORTED, None),
    "unplug_code": (errors.NOT_RESPONDING, errors.ABORTED, errors.NO_DEVICE),
    "abort_reports_bytes": (True, False),
    "abort_reversed": (False, True),
    "stall_ends_queue": (False, True),
    "stalled_pipe_refuses": (True, False),
    "capture_survives_owner": (False, True),
    "plain_reenumeration_ends_capture": (True, False),
    "capture_unconfigures": (True, False),
    "reenumeration_changes_address": (True, False),
    "reenumeration_seconds": (0.0, 0.3),
    "driver_seconds": (0.0, 0.1),
    "halted_at_first_use": (False, True),
    "has_port_number": (True, False),
}
ROWS = pairwise(VALUES)


@pytest.mark.parametrize("switches", ROWS, ids=[str(number) for number in range(len(ROWS))])
def test_a_session_with_these_switches(switches: dict[str, object], in_process: Callable[..., None]) -> None:
    in_process("switch_cases.py", **switches)


def test_each_pair_of_values_is_covered() -> None:
    for name, values in VALUES.items():
        for other, others in VALUES.items():
            pairs = {(row[name], row[other]) for row in ROWS}
            assert name == other or len(pairs) == len(values) * len(others)
