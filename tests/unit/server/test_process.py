"""The server's main: what it makes of the limits of its process."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, resource, sys
from usbipd.server.process import _allow_connections
logging.basicConfig(stream=sys.stdout, format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
print(_allow_connections({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (20, ["20 (64, 200)"]),
        (128, ["128 (160, 200)"]),
        (4096, ["4096 connections are allowed, but only 200 open files (ulimit -Hn)", "168 (200, 200)"]),
    ],
)
def test_the_limit_of_open_files_follows_that_of_connections(wanted: int, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(wanted=wanted)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == said
