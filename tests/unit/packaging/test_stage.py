"""The output of packaging/stage.py, and its errors for missing files."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import licenses
import pytest
import stage

from tests.unit.packaging.built import BUILT


def test_staged_paths(stage_tree: Path) -> None:
    root = stage_tree / "root"
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if not path.is_dir()}
    assert {path for path in files if "licenses" not in path} == {
        "Library/LaunchDaemons/org.usbipd.extension.plist",
        "Library/usbipd/launchd.sh",
        "Library/usbipd/usbipd",
        "Library/usbipd/usbipd-ext",
        "Library/usbipd/usbipd-uninstall",
        "Library/usbipd/usbipd.toml.default",
        "private/etc/newsyslog.d/usbipd.conf",
        "usr/local/bin/usbipd",
        "usr/local/sbin/usbipd-ext",
        "usr/local/sbin/usbipd-uninstall",
        "usr/local/share/bash-completion/completions/usbipd",
        "usr/local/share/bash-completion/completions/usbipd-ext",
        "usr/local/share/fish/vendor_completions.d/usbipd.fish",
        "usr/local/share/fish/vendor_completions.d/usbipd-ext.fish",
        "usr/local/share/man/man1/usbipd.1",
        "usr/local/share/man/man5/usbipd.toml.5",
        "usr/local/share/man/man8/usbipd-ext.8",
        "usr/local/share/zsh/site-functions/_usbipd",
    }
    assert {path.name for path in (stage_tree / "scripts").iterdir()} == {
        "preinstall",
        "postinstall",
        "launchd.sh",
    }
    assert not (root / "Library/usbipd/usbipd.toml").exists(), "the configuration belongs to the user"


@pytest.mark.parametrize(
    ("link", "file"),
    [
        ("usr/local/bin/usbipd", "usbipd"),
        ("usr/local/sbin/usbipd-ext", "usbipd"),
        ("Library/usbipd/usbipd-ext", "usbipd"),
        ("usr/local/sbin/usbipd-uninstall", "usbipd-uninstall"),
    ],
)
def test_commands_are_links_into_our_directory(stage_tree: Path, link: str, file: str) -> None:
    root = stage_tree / "root"
    assert (root / link).is_symlink()
    assert (root / link).resolve() == (root / "Library/usbipd" / file).resolve()
    assert Path(link).name in ("usbipd", "usbipd-ext", "usbipd-uninstall"), "its name selects the program"


def test_modes_do_not_depend_on_the_builder(stage_tree: Path) -> None:
    executable = {"usbipd", "usbipd-uninstall", "preinstall", "postinstall"}
    for path in stage_tree.rglob("*"):
        if path.is_symlink():
            continue
        place = path.relative_to(stage_tree)
        expected = 0o755 if path.is_dir() else 0o644
        if path.name in executable and place.parts[:3] in (
            ("root", "Library", "usbipd"),
            ("scripts", path.name),
        ):
            expected = 0o755
        assert stat.S_IMODE(path.stat().st_mode) == expected, place


def test_licences_of_everything_bundled(stage_tree: Path) -> None:
    home = stage_tree / "root/Library/usbipd/licenses"
    words = {
        "usbipd": "MIT License",
        "libusb": "GNU LESSER GENERAL PUBLIC LICENSE",
        "libusb1": "GNU LESSER GENERAL PUBLIC LICENSE",
        "msgspec": "Redistribution and use in source and binary forms",
        "psutil": "Redistribution and use in source and binary forms",
        "python": "PYTHON SOFTWARE FOUNDATION LICENSE",
        "usb.ids": "Redistribution and use in source and binary forms",
    }
    assert {path.name for path in home.iterdir()} == set(words)
    for component, text in words.items():
        assert any(text in path.read_text() for path in (home / component).iterdir()), component


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(licenses.MissingError, match="no-such-package, which is bundled, is not installed in"):
        licenses.of_distribution("no-such-package")


def distribution(place: Path, *files: str) -> None:
    """Create a package without code in the directory `place`."""
    metadata = place / "bare-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bare\nVersion: 1.0\n")
    for file in files:
        (metadata / file).write_text("text\n")
    names = ["METADATA", *files]
    (metadata / "RECORD").write_text("".join(f"bare-1.0.dist-info/{name},,\n" for name in names))


def test_a_package_without_a_licence_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "AUTHORS")
    with pytest.raises(licenses.MissingError, match="bare has no licence text"):
        licenses.of_distribution("bare")


def test_libusb_is_not_bundled_without_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licenses, "DISTRIBUTIONS", ("libusb1",))
    monkeypatch.setattr(licenses, "LIBUSB", ("libusb1", "COPYING.NONE"))
    with pytest.raises(licenses.MissingError, match=r"libusb1 has no COPYING\.NONE, the licence of libusb"):
        licenses.bundled()


def test_every_licence_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "LICENSE-MIT", "COPYING", "NOTICE.txt", "AUTHORS")
    assert [path.name for path in licenses.of_distribution("bare")] == [
        "COPYING",
        "LICENSE-MIT",
        "NOTICE.txt",
    ]


def test_code_of_that_name_is_not_a_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "LICENSE")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "license.py").touch()
    with (tmp_path / "bare-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("bare/license.py,,\n")
    assert [path.name for path in licenses.of_distribution("bare")] == ["LICENSE"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Path]]:
    """Runs stage.py on complete files; returns the exit code and the stage tree."""
    monkeypatch.setattr(licenses, "DISTRIBUTIONS", ("libusb1",))
    for name in BUILT:
        (tmp_path / name).touch()

    def run(output: Path | None = None) -> tuple[int, Path]:
        output = output or tmp_path / "tree"
        options = {"binary": tmp_path / "usbipd", "man": tmp_path, "completions": tmp_path, "output": output}
        words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        monkeypatch.setattr(sys, "argv", ["stage.py", *words])
        return stage.main(), output

    return run


def test_an_older_stage_tree_is_replaced(made: Callable[..., tuple[int, Path]]) -> None:
    code, output = made()
    assert code == 0
    (output / "root" / "old").touch()
    assert made()[0] == 0
    assert not (output / "root" / "old").exists()


def test_only_a_stage_tree_is_replaced(
    made: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(tmp_path)[0] == 1
    assert capsys.readouterr().err == f"stage: {tmp_path}: exists and is not a stage tree\n"
    assert (tmp_path / "usbipd").exists()


@pytest.mark.parametrize("name", ["usbipd", "usbipd-ext.8", "_usbipd"])
def test_a_missing_file_is_named(
    made: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).unlink()
    assert made()[0] == 1
    assert capsys.readouterr().err == f"stage: {tmp_path / name}: No such file or directory\n"


def test_a_missing_licence_fails_the_build(
    made: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(licenses, "DISTRIBUTIONS", ("libusb1", "no-such-package"))
    assert made()[0] == 1
    assert "stage: the package no-such-package, which is bundled, is not installed" in capsys.readouterr().err
