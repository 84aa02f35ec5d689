"""`make install` and `make uninstall`, on a scratch Linux system for each test."""

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import installation
import licenses
import pytest

from tests.unit.packaging.built import BUILT

Make = Callable[..., int]

PREFIX = "/usr/local"
PROGRAM = "usr/local/bin/usbipd"
CONFIG = "etc/usbipd/usbipd.toml"
DEFAULT = "usr/local/share/usbipd/usbipd.toml"
MANIFEST = "usr/local/share/usbipd/manifest"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Test files in place of make's output."""
    directory = tmp_path / "built"
    directory.mkdir()
    for name in (*BUILT, "usbipd.cdx.json"):
        (directory / name).write_text(f"this is {name}\n")
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of the system."""
    return tmp_path / "root"


@pytest.fixture
def make(built: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make("install")`, `make("uninstall")`; the exit code."""
    # every development environment has these; the rest comes with `make binary`
    monkeypatch.setattr(licenses, "DISTRIBUTIONS", ("libusb1", "msgspec", "psutil"))

    def run(action: str, *options: str) -> int:
        places = ("--dist", str(built), "--man", str(built), "--completions", str(built))
        return installation.main([action, "--destdir", str(root), *places, *options])

    return run


def tree(root: Path) -> dict[str, str]:
    """Every path below `root`: targets of links, contents of files, "/" for directories."""
    found = {}
    for path in root.rglob("*"):
        link = f"-> {path.readlink()}" if path.is_symlink() else None
        found[str(path.relative_to(root))] = link or ("/" if path.is_dir() else path.read_text())
    return found


def test_installed_paths(make: Make, root: Path) -> None:
    assert make("install") == 0
    files = {place for place, content in tree(root).items() if content != "/"}
    assert {place for place in files if "licenses" not in place} == {
        "etc/usbipd/usbipd.toml",
        "usr/local/bin/usbipd",
        "usr/local/lib/systemd/system/usbipd.service",
        "usr/local/lib/sysusers.d/usbipd.conf",
        "usr/local/sbin/usbipd-ext",
        "usr/local/share/bash-completion/completions/usbipd",
        "usr/local/share/bash-completion/completions/usbipd-ext",
        "usr/local/share/doc/usbipd/README.md",
        "usr/local/share/doc/usbipd/usbipd.cdx.json",
        "usr/local/share/fish/vendor_completions.d/usbipd-ext.fish",
        "usr/local/share/fish/vendor_completions.d/usbipd.fish",
        "usr/local/share/man/man1/usbipd.1",
        "usr/local/share/man/man5/usbipd.toml.5",
        "usr/local/share/man/man8/usbipd-ext.8",
        "usr/local/share/usbipd/manifest",
        "usr/local/share/usbipd/usbipd.toml",
        "usr/local/share/zsh/site-functions/_usbipd",
    }
    components = {path.name for path in (root / "usr/local/share/doc/usbipd/licenses").iterdir()}
    assert components == {"usbipd", "libusb", "libusb1", "msgspec", "psutil", "python", "usb.ids"}


def test_both_commands_are_one_executable(make: Make, root: Path) -> None:
    make("install")
    command = root / "usr/local/sbin/usbipd-ext"
    assert str(command.readlink()) == "../bin/usbipd", "the tree can be moved"
    assert command.read_text() == "this is usbipd\n"


def test_modes_and_owners_do_not_depend_on_the_umask(make: Make, root: Path) -> None:
    before = os.umask(0o077)
    try:
        make("install")
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid()), path
        if not path.is_symlink():
            expected = 0o755 if path.is_dir() or path == root / PROGRAM else 0o644
            assert stat.S_IMODE(status.st_mode) == expected, path


def test_uninstall_leaves_what_was_there_before(make: Make, root: Path) -> None:
    (root / "usr/local/share/man/man1").mkdir(parents=True)
    (root / "usr/local/share/man/man1/other.1").write_text("another page\n")
    (root / "opt").mkdir()
    before = tree(root)
    assert make("install") == 0
    assert make("uninstall") == 0
    assert tree(root) == before


def test_uninstall_leaves_what_came_later(make: Make, root: Path) -> None:
    make("install")
    (root / "usr/local/share/usbipd/notes").write_text("mine\n")
    assert make("uninstall") == 0
    assert {place for place, content in tree(root).items() if content != "/"} == {
        "usr/local/share/usbipd/notes"
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the options are those of GNU tar")
def test_the_tree_of_a_release_unpacked_as_the_manual_says(make: Make, root: Path, tmp_path: Path) -> None:
    manual = (installation.PACKAGING.parent / "docs/install.md").read_text()
    [options] = re.findall(r"`sudo tar -C / (.*) -xzf`", manual)
    make("install")
    subprocess.run(["tar", "-C", root, "-czf", tmp_path / "release.tar.gz", "usr"], check=True)
    system = tmp_path / "system"
    (system / "usr/local/bin").mkdir(parents=True)
    mode = 0o2775 if os.geteuid() == 0 else 0o775  # tar leaves set-group-ID to root alone
    (system / "usr/local/bin").chmod(mode)
    (system / "usr/local/sbin").symlink_to("bin")
    subprocess.run(
        ["tar", "-C", system, *options.split(), "-xzf", tmp_path / "release.tar.gz"],
        check=True,
    )
    assert str((system / "usr/local/sbin").readlink()) == "bin"
    assert stat.S_IMODE((system / "usr/local/bin").stat().st_mode) == mode
    for name in ("bin/usbipd", "bin/usbipd-ext", "sbin/usbipd-ext"):
        assert (system / "usr/local" / name).read_text() == "this is usbipd\n"


def test_a_second_install_changes_nothing(make: Make, root: Path) -> None:
    make("install")
    before = tree(root)
    assert make("install") == 0
    assert tree(root) == before


def test_an_upgrade_replaces_and_removes(make: Make, root: Path, built: Path) -> None:
    make("install")
    old = root / "usr/local/share/doc/old/page"
    old.parent.mkdir()
    old.write_text("from an older version\n")
    with (root / MANIFEST).open("a") as manifest:
        manifest.write("/usr/local/share/doc/old/\n/usr/local/share/doc/old/page\n")
    (built / "usbipd").write_text("a newer one\n")
    with (root / PROGRAM).open() as running:
        assert make("install") == 0
        assert running.read() == "this is usbipd\n", "the file of a running process is intact"
    assert (root / PROGRAM).read_text() == "a newer one\n"
    assert not old.parent.exists()
    assert make("uninstall") == 0
    assert not list(root.iterdir())


def test_an_edited_configuration_is_kept(make: Make, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("install")
    (root / CONFIG).write_text('listen = ["0.0.0.0"]\n')
    assert make("install") == 0
    assert f"{root / CONFIG} is kept" in capsys.readouterr().out
    assert make("uninstall") == 0
    assert capsys.readouterr().out.endswith(f"{root / CONFIG} is kept.\n")
    assert tree(root) == {"etc": "/", "etc/usbipd": "/", CONFIG: 'listen = ["0.0.0.0"]\n'}
    assert make("install") == 0
    assert (root / CONFIG).read_text() == 'listen = ["0.0.0.0"]\n'


def test_an_unedited_configuration_becomes_the_new_default(make: Make, root: Path) -> None:
    make("install")
    old = "# the default of an older version\n"
    (root / CONFIG).write_text(old)
    (root / DEFAULT).write_text(old)
    assert make("install") == 0
    assert (root / CONFIG).read_text() == (installation.PACKAGING / "usbipd.toml").read_text()
    assert make("uninstall") == 0
    assert not list(root.iterdir())


def test_a_foreign_file_is_not_replaced(make: Make, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some distributions have a usbipd.service for the kernel's own server."""
    unit = root / "usr/local/lib/systemd/system/usbipd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    before = tree(root)
    assert make("install") == 1
    assert f"{unit} exists and was not installed by `make install`" in capsys.readouterr().err
    assert tree(root) == before


def test_an_unbuilt_file_is_named(
    make: Make, root: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "usbipd").unlink()
    assert make("install") == 1
    assert capsys.readouterr().err == (
        f"install: there is no {built / 'usbipd'}: "
        "run `make binary man completions` first, as an ordinary user\n"
    )
    assert not root.exists()


@pytest.fixture
def cut_off(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`cut_off(last)`: an install that fails at the file whose place ends with `last`."""
    put = installation.System.put

    def install(last: str) -> None:
        def fail(
            system: installation.System, place: str, item: installation.File | installation.Link
        ) -> None:
            if place.endswith(last):
                raise OSError(28, "No space left on device", place)
            put(system, place, item)

        with monkeypatch.context() as patch:
            patch.setattr(installation.System, "put", fail)
            assert make("install") == 1

    return install


@pytest.mark.parametrize("last", [DEFAULT, CONFIG, "usbipd.cdx.json", "usbipd.service", "_usbipd"])
def test_an_interrupted_install_can_be_removed(
    make: Make, root: Path, cut_off: Callable[[str], None], last: str
) -> None:
    cut_off(last)
    assert make("uninstall") == 0
    assert not list(root.iterdir())


@pytest.mark.parametrize("last", [DEFAULT, CONFIG, "usbipd.cdx.json"])
@pytest.mark.parametrize("next_action", ["install", "uninstall"])
def test_an_interrupted_upgrade_mistakes_no_configuration_for_an_edited_one(
    make: Make, root: Path, cut_off: Callable[[str], None], last: str, next_action: str
) -> None:
    make("install")
    for place in (CONFIG, DEFAULT):
        (root / place).write_text("# the default of an older version\n")
    cut_off(last)
    assert make(next_action) == 0
    if next_action == "install":
        assert (root / CONFIG).read_text() == (installation.PACKAGING / "usbipd.toml").read_text()
        assert make("uninstall") == 0
    assert not list(root.iterdir())


@pytest.mark.parametrize("last", [DEFAULT, "usbipd.cdx.json"])
def test_an_interrupted_upgrade_keeps_an_edited_configuration(
    make: Make, root: Path, cut_off: Callable[[str], None], last: str
) -> None:
    make("install")
    (root / CONFIG).write_text("# mine\n")
    (root / DEFAULT).write_text("# the default of an older version\n")
    cut_off(last)
    assert make("install") == 0
    assert (root / CONFIG).read_text() == "# mine\n"


@pytest.mark.parametrize("prefix", ["usr", "/usr/", "/opt/our programs", "/opt/../usr", "/opt/50%", ""])
def test_an_invalid_prefix(make: Make, root: Path, capsys: pytest.CaptureFixture[str], prefix: str) -> None:
    assert make("install", "--prefix", prefix) == 1
    assert f"PREFIX={prefix}: an absolute path" in capsys.readouterr().err
    assert not root.exists()


def test_another_prefix(make: Make, root: Path) -> None:
    assert make("install", "--prefix", "/opt/usbipd") == 0
    assert {path.name for path in root.iterdir()} == {"etc", "opt"}, "only the configuration is elsewhere"
    unit = (root / "opt/usbipd/lib/systemd/system/usbipd.service").read_text()
    assert "\nExecStart=/opt/usbipd/sbin/usbipd-ext --run\n" in unit
    assert make("uninstall", "--prefix", "/opt/usbipd") == 0
    assert not list(root.iterdir())


def test_uninstall_where_nothing_is_installed(
    make: Make, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make("uninstall") == 1
    assert "usbipd is not installed below /usr/local" in capsys.readouterr().err


def test_directories_that_every_system_has_stay(make: Make, root: Path) -> None:
    """As when the tree of a release is unpacked over a system whose /usr/local is empty."""
    make("install")
    installation.uninstall(installation.System(root, PREFIX), installation.STANDARD)
    assert set(tree(root)) == {
        *("etc", "usr", "usr/local", "usr/local/bin", "usr/local/sbin", "usr/local/lib"),
        *("usr/local/share", "usr/local/share/man"),
    }


def test_macos_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert installation.main(["install"]) == 1
    assert capsys.readouterr().err == "install: macOS is installed from a package: make pkg\n"


def test_a_manifest_that_is_not_text(make: Make, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("install")
    (root / MANIFEST).write_bytes(b"/usr/local/bin/usbipd\n\xff\n")
    for action in ("install", "uninstall"):
        assert make(action) == 1
        assert "byte 22: not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["etc/passwd", "/usr/local/../../etc/passwd", "", "/usr/local/bin/\0"])
def test_a_damaged_manifest_removes_nothing(
    make: Make, root: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    make("install")
    lines = (root / MANIFEST).read_text().splitlines()
    (root / MANIFEST).write_text("\n".join([lines[0], line, *lines[1:]]))
    before = tree(root)
    for action in ("install", "uninstall"):
        assert make(action) == 1
        assert f"manifest, line 2: {line!r} is not an absolute path" in capsys.readouterr().err
    assert tree(root) == before


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("/etc/passwd", "neither below /usr/local nor /etc/usbipd/usbipd.toml"),
        ("/usr/localhost", "neither below /usr/local nor /etc/usbipd/usbipd.toml"),
        ("/usr/local", "neither below /usr/local nor /etc/usbipd/usbipd.toml"),
        ("/var/lib/other/", "a directory that holds none of the files of this list"),
        ("/usr/local/share/other/", "a directory that holds none of the files of this list"),
        ("/", "a directory that holds none of the files of this list"),
    ],
)
def test_a_manifest_with_foreign_files_removes_nothing(
    make: Make, root: Path, capsys: pytest.CaptureFixture[str], line: str, wrong: str
) -> None:
    make("install")
    (root / "etc/passwd").write_text("root:x:0:0\n")
    (root / "usr/localhost").write_text("another's\n")
    for directory in ("var/lib/other", "usr/local/share/other"):
        (root / directory).mkdir(parents=True)
    lines = (root / MANIFEST).read_text().splitlines()
    (root / MANIFEST).write_text("\n".join([*lines, line]))
    before = tree(root)
    for action in ("install", "uninstall"):
        assert make(action) == 1
        said = capsys.readouterr().err
        assert f"{root / MANIFEST}, line {len(lines) + 1}: {line!r} is {wrong}" in said
    assert tree(root) == before


def test_nothing_is_written_through_a_planted_link(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("install")
    victim = root / "victim"
    victim.write_text("another's\n")
    unlink = Path.unlink

    def plant(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name == "usbipd.new":
            path.symlink_to(victim)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", plant)
        assert make("install") == 1
    assert "usbipd.new: File exists" in capsys.readouterr().err
    assert victim.read_text() == "another's\n"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert (root / PROGRAM).read_text() == "this is usbipd\n"


def test_bindings_are_kept(make: Make, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("install")
    (root / "var/lib/usbipd").mkdir(parents=True)
    assert make("uninstall") == 0
    assert f"{root}/var/lib/usbipd is kept: it contains bindings and history.\n" in capsys.readouterr().out
    assert (root / "var/lib/usbipd").is_dir()


@pytest.mark.parametrize("place", [installation.RUNNING, installation.ENABLED])
def test_an_active_service_must_be_stopped_first(root: Path, place: str) -> None:
    system = installation.System(root, PREFIX)
    installation.check_stopped(system)
    system.at(place).parent.mkdir(parents=True)
    system.at(place).symlink_to("/somewhere")
    with pytest.raises(installation.InstallError, match="first run: systemctl disable --now usbipd"):
        installation.check_stopped(system)


@pytest.mark.parametrize(
    ("prefix", "is_upgrade", "last"),
    [
        ("/usr/local", False, "systemctl enable --now usbipd"),
        ("/opt/usbipd", False, "systemctl enable --now /opt/usbipd/lib/systemd/system/usbipd.service"),
        ("/usr/local", True, "systemctl try-restart usbipd"),
    ],
)
def test_advice_to_the_administrator(prefix: str, is_upgrade: bool, last: str) -> None:
    _head, *commands = installation.how_to_start(installation.System(Path("/"), prefix), is_upgrade)
    assert [command.strip() for command in commands] == [
        f"systemd-sysusers {prefix}/lib/sysusers.d/usbipd.conf",
        "systemctl daemon-reload",
        last,
    ]
