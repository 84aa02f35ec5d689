"""The bill of materials of the executable, from contents that the tests choose."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bill_of_materials
import pytest
import usb_ids

from usbipd import __version__

DPKG = """#!/bin/sh
case "$*" in
"-S /lib/x/libz.so.1") echo "zlib1g:amd64: /lib/x/libz.so.1" ;;
"-W -f \\${Version} zlib1g:amd64") printf 1:1.2.13 ;;
*) exit 1 ;;
esac
"""
"""A Debian whose /lib is a link to /usr/lib, and whose package has the file in /lib."""


@pytest.fixture
def dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "dpkg-query").write_text(DPKG)
    (programs / "dpkg-query").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))


def bill(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    modules: list[str],
    *names: str,
    libusb: dict[str, Any] | None = None,
    usb_ids: Path | None = None,
) -> dict[str, Any]:
    """The document for these modules and files; `libusb` defaults to Linux's."""
    files = []
    for name in names:
        file = directory / name.replace("/", "_")
        file.write_text(f"this is {name}")
        files.append([name, str(file)])
    libusb = libusb or {"version": "1.0.30", "source": None}
    names = None if usb_ids is None else str(usb_ids)
    contents = {"libusb": libusb, "usb_ids": names, "modules": modules, "files": files}
    source, target = directory / "contents.json", directory / "bill.json"
    source.write_text(json.dumps(contents))
    monkeypatch.setattr(sys, "argv", ["bill_of_materials.py", str(source), str(target)])
    bill_of_materials.main()
    document: dict[str, Any] = json.loads(target.read_text())
    return document


@pytest.mark.usefixtures("dpkg")
def test_each_part_belongs_to_one_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = bill(
        tmp_path,
        monkeypatch,
        ["asyncio", "msgspec", "usb1.libusb1", "usbipd.cli.main"],
        *("libpython3.11.so.1.0", "libusb-1.0.so.0", "libz.so.1"),
        *("msgspec/_core.so", "psutil/_psutil_linux.so", "usbipd/_pump.so", "lib-dynload/_struct.so"),
    )
    root = document["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("usbipd", __version__, "application")
    found = {each["name"]: each for each in document["components"]}
    packages = {"libusb1", "msgspec", "psutil", "pyinstaller"}
    assert set(found) == packages | {"python", "libusb", "libz.so.1"}
    for name in packages:
        assert found[name]["purl"] == f"pkg:pypi/{name}@{version(name)}"
    libusb = found["libusb"]
    assert libusb["version"] == "1.0.30"
    assert libusb["description"] == f"from libusb-package {version('libusb-package')} of PyPI"
    digest = hashlib.sha256(b"this is libusb-1.0.so.0").hexdigest()
    assert libusb["hashes"] == [{"alg": "SHA-256", "content": digest}]
    needs = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
    assert sorted(needs[root["bom-ref"]]) == sorted(each["bom-ref"] for each in found.values())


@pytest.mark.usefixtures("dpkg")
def test_our_own_libusb_is_named_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"url": "https://x.example/libusb-1.0.30.tar.bz2", "patches": ["0001-a.patch", "0002-b.patch"]}
    libusb = {"version": "1.0.30-usbipd2", "source": source}
    document = bill(tmp_path, monkeypatch, [], "libusb-1.0.0.dylib", libusb=libusb)
    [found] = [each for each in document["components"] if each["name"] == "libusb"]
    assert found["version"] == "1.0.30-usbipd2"
    assert found["description"] == (
        "from https://x.example/libusb-1.0.30.tar.bz2 with these patches in packaging/libusb of usbipd's "
        "source: 0001-a.patch, 0002-b.patch"
    )
    assert found["licenses"] == [{"license": {"id": "LGPL-2.1-or-later"}}]


LIST = b"#\n# Version: 2026.06.10\n# Date: 2026-06-10\n\n0001  Vendor\n"


def component_of_usb_ids(document: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in document["components"] if each["name"] == "usb.ids"]
    assert (found["version"], found["type"]) == ("2026.06.10", "data")
    assert found["licenses"] == [{"expression": "GPL-2.0-or-later OR BSD-3-Clause"}]
    assert found["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(LIST).hexdigest()}]
    return dict(found)


@pytest.mark.usefixtures("dpkg")
def test_the_usb_ids_of_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usb.ids"
    path.write_bytes(LIST)
    monkeypatch.setattr(usb_ids, "SHA256", hashlib.sha256(LIST).hexdigest())
    found = component_of_usb_ids(bill(tmp_path, monkeypatch, [], usb_ids=path))
    assert found["description"] == f"from {usb_ids.URL}"


def test_the_usb_ids_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usb.ids"
    path.write_bytes(LIST)
    dpkg = tmp_path / "bin/dpkg-query"
    dpkg.parent.mkdir()
    dpkg.write_text(f'#!/bin/sh\ncase $2 in {path}) echo "usb.ids: {path}" ;; *) echo 2026 ;; esac\n')
    dpkg.chmod(0o755)
    monkeypatch.setenv("PATH", str(dpkg.parent))
    found = component_of_usb_ids(bill(tmp_path, monkeypatch, [], usb_ids=path))
    assert found["description"] == "from the Debian package usb.ids"


@pytest.mark.usefixtures("dpkg")
def test_a_library_of_the_system_is_of_a_package() -> None:
    path = Path("/usr/lib/x/libz.so.1")
    found = bill_of_materials.of_system(path)
    assert found == ("1:1.2.13", path, "from the Debian package zlib1g:amd64")
    unknown = Path("/usr/lib/x/libother.so.1")
    assert bill_of_materials.of_system(unknown) == (None, unknown, None)


def test_a_system_without_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = Path("/usr/lib/x/libz.so.1")
    assert bill_of_materials.of_system(path) == (None, path, None)
