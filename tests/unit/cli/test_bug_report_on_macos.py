"""The parts of a report that only a Mac has."""

from pathlib import Path

import pytest

from usbipd.cli import host_facts


@pytest.mark.parametrize(
    ("script", "model", "build"),
    [
        ('test "$*" = "-n hw.model kern.osversion" && printf "Mac14,2\\n25D125\\n"', "Mac14,2", "25D125"),
        ("exit 1", None, None),
    ],
)
def test_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, model: str | None, build: str | None
) -> None:
    sysctl = tmp_path / "sysctl"
    sysctl.write_text(f"#!/bin/sh\n{script}\n")
    sysctl.chmod(0o755)
    monkeypatch.setattr(host_facts, "SYSCTL", sysctl)
    monkeypatch.setattr(host_facts.platform, "mac_ver", lambda: ("26.3.1", ("", "", ""), "arm64"))
    facts = host_facts.host_facts()
    assert (facts.system, facts.system_version) == ("macOS", "26.3.1")
    assert (facts.model, facts.system_build) == (model, build)
