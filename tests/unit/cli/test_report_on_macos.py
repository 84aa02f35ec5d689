"""What a report has of a Mac alone, on an IOKit that the test makes."""

from pathlib import Path

import pytest

from tests.fake_iokit.registry import FakeRegistry, load, needs_fake
from usbipd.cli import host_facts, report

pytestmark = needs_fake


def test_the_registry_below_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = FakeRegistry(load())
    device = registry.add_device(0x14230000, "Stick", UsbExclusiveOwner="pid 7, usbipd")
    interface = registry.add_interface(device, 0)
    registry.add(interface, "IOMedia", "Medium", BSD_Name="disk4")
    monkeypatch.setattr(report.sys, "platform", "darwin")
    entries = report.registry_below("20-2.3")
    assert entries is not None
    assert [(each.depth, each.class_name, each.name) for each in entries] == [
        (0, "IOUSBHostDevice", "Stick"),
        (1, "IOUSBHostInterface", "IOUSBHostInterface"),
        (2, "IOMedia", "Medium"),
    ]
    assert [each.owner for each in entries] == ["pid 7, usbipd", None, None]
    assert [each.interface for each in entries] == [None, 0, None]
    assert [each.bsd_name for each in entries] == [None, None, "disk4"]
    assert len({each.registry_id for each in entries}) == 3
    assert report.registry_below("20-9") == []
    registry.assert_balanced()


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
