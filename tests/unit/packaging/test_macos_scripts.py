"""The effects of preinstall, postinstall and usbipd-uninstall on a Mac.

The programs of macOS are fakes here (fake_macos/); only a Mac shows whether the real ones answer alike.
"""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from stage import LINKS

from tests.unit.packaging.mac import LABEL, SHELLS, SUPPORT, Mac
from usbipd.launchd import steps_to_load

PLIST = f"/Library/LaunchDaemons/{LABEL}.plist"
START = ["launchctl print", "launchctl enable", "launchctl bootstrap", "launchctl kickstart"]


def install(mac: Mac, default: str | None = None) -> str:
    """Does everything that the Installer does; returns postinstall's output."""
    done = mac.run("preinstall")
    assert done.returncode == 0, done.stderr
    mac.unpack(default)
    done = mac.run("postinstall")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_fresh_installation(mac: Mac) -> None:
    assert install(mac) == ""
    assert mac.has_job
    launchd = [call for call in mac.calls if call.startswith("launchctl")]
    assert [" ".join(call.split()[:2]) for call in launchd] == START
    assert launchd[1:] == [
        f"launchctl enable system/{LABEL}",
        f"launchctl bootstrap system {PLIST}",
        f"launchctl kickstart system/{LABEL}",
    ]
    assert mac.user() == {
        "UniqueID": "400",
        "PrimaryGroupID": "400",
        "RealName": "usbipd server",
        "NFSHomeDirectory": "/var/empty",
        "UserShell": "/usr/bin/false",
        "Password": "*",
        "IsHidden": "1",
    }
    assert mac.group() == {"PrimaryGroupID": "400", "RealName": "usbipd server", "Password": "*"}
    support = mac.root / SUPPORT
    assert stat.S_IMODE(support.stat().st_mode) == 0o700
    default = (mac.root / "Library/usbipd/usbipd.toml.default").read_bytes()
    assert {path.name: path.read_bytes() for path in support.iterdir()} == {
        "usbipd.toml": default,
        "usbipd.toml.default": default,
    }
    assert stat.S_IMODE((mac.root / "var/log/usbipd.log").stat().st_mode) == 0o640


def test_the_user_exists_before_the_job_starts(mac: Mac) -> None:
    install(mac)
    last_of_user = max(number for number, call in enumerate(mac.calls) if call.startswith("dscl"))
    first_of_job = min(number for number, call in enumerate(mac.calls) if call.startswith("launchctl"))
    assert last_of_user < first_of_job


def test_installing_again_changes_nothing(mac: Mac) -> None:
    install(mac)
    files, user, group = mac.files(), mac.user(), mac.group()
    assert install(mac) == ""
    assert (mac.files(), mac.user(), mac.group()) == (files, user, group)
    assert mac.has_job


@pytest.mark.parametrize("lingers", [0, 3])
def test_an_upgrade_stops_the_old_daemon_before_replacing_its_files(mac: Mac, lingers: int) -> None:
    install(mac)
    mac.load_job(lingers)
    assert mac.run("preinstall").returncode == 0
    assert not mac.has_job
    looks = ["print"] * (lingers + 1)
    assert mac.calls_of("launchctl") == ["print", "bootout", *looks]
    assert len([call for call in mac.calls if call == "sleep 1"]) == lingers


def test_a_job_that_never_stops_fails_the_upgrade(mac: Mac) -> None:
    mac.load_job(1000)
    done = mac.run("preinstall")
    assert done.returncode == 1
    assert f"the launchd job {LABEL} does not stop" in done.stderr
    assert len(mac.calls_of("sleep")) == 45


def test_a_manually_started_daemon_fails_the_upgrade(mac: Mac) -> None:
    install(mac)
    mac.let_answer(0)
    done = mac.run("preinstall")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a daemon is running that launchd did not start" in done.stderr
    assert not mac.has_job, "checked after the job's own daemon has stopped"
    mac.let_answer(3)
    done = mac.run("preinstall")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_job_that_still_exists_is_restarted(mac: Mac) -> None:
    """The preinstall of an earlier version may not have stopped it."""
    mac.unpack()
    mac.load_job(2)
    assert mac.run("postinstall").returncode == 0
    assert mac.calls_of("launchctl") == [
        *("print", "bootout", "print", "print", "print"),
        *("enable", "bootstrap", "kickstart"),
    ]


def test_another_volume_gets_a_configuration_and_nothing_else(mac: Mac) -> None:
    volume = "/Volumes/Other"
    mac.unpack()
    (mac.root / "Volumes").mkdir()
    (mac.root / "Library").rename(mac.root / "Volumes" / "Library")
    (mac.root / "Volumes" / "Other").mkdir()
    (mac.root / "Volumes" / "Library").rename(mac.root / "Volumes" / "Other" / "Library")
    for script in ("preinstall", "postinstall"):
        done = mac.run(script, volume)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert mac.calls == []
    assert (mac.root / "Volumes/Other" / SUPPORT / "usbipd.toml").is_file()
    assert not (mac.root / "Library").exists()
    assert not (mac.root / "var").exists()


@pytest.mark.parametrize("name", ["preinstall", "postinstall", "usbipd-uninstall"])
@pytest.mark.parametrize("shell", SHELLS)
def test_no_program_is_taken_from_the_callers_path(
    tmp_path: Path, stage_tree: Path, name: str, shell: str
) -> None:
    """sudo may keep a PATH with the user's directories.  The script is unchanged, as installed."""
    traps, volume, sprung = tmp_path / "bin", tmp_path / "volume", tmp_path / "sprung"
    traps.mkdir()
    for program in ("cat", "chmod", "cp", "dirname", "id", "launchctl", "mkdir", "mv", "rm"):
        (traps / program).write_text(f"#!/bin/sh\necho $0 >>'{sprung}'\n")
        (traps / program).chmod(0o755)
    if name == "usbipd-uninstall":
        command = [str(stage_tree / "root/Library/usbipd" / name), "--help"]
    else:  # for another volume than the running one: this machine is not changed
        shutil.copytree(stage_tree / "root", volume)
        command = [str(stage_tree / "scripts" / name), "usbipd.pkg", str(volume), str(volume), "/"]
    done = subprocess.run(
        [*SHELLS[shell], *command],
        env={"PATH": f"{traps}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not sprung.exists(), sprung.read_text()
    if name == "postinstall":
        assert (volume / SUPPORT / "usbipd.toml").is_file()


# ---- the configuration -------------------------------------------------------------------------------------


def configuration(mac: Mac) -> str:
    return (mac.root / SUPPORT / "usbipd.toml").read_text()


def test_an_unedited_default_follows_the_package(mac: Mac) -> None:
    install(mac, "# one\n")
    assert install(mac, "# two\n") == ""
    assert configuration(mac) == "# two\n"


def test_an_edited_configuration_is_kept(mac: Mac) -> None:
    install(mac, "# one\n")
    (mac.root / SUPPORT / "usbipd.toml").write_text("# mine\n")
    assert install(mac, "# one\n") == "", "the default is the same"
    said = install(mac, "# two\n")
    assert "was edited and is kept" in said
    assert "see /Library/usbipd/usbipd.toml.default" in said
    assert configuration(mac) == "# mine\n"
    assert install(mac, "# two\n") == "", "reported once"


def test_an_existing_configuration_is_kept(mac: Mac) -> None:
    (mac.root / SUPPORT).mkdir(parents=True)
    (mac.root / SUPPORT / "usbipd.toml").write_text("# mine\n")
    install(mac)
    assert configuration(mac) == "# mine\n"


def test_a_configuration_that_is_a_link_is_kept(mac: Mac) -> None:
    (mac.root / SUPPORT).mkdir(parents=True)
    (mac.root / SUPPORT / "usbipd.toml").symlink_to("/nowhere/usbipd.toml")
    install(mac)
    assert (mac.root / SUPPORT / "usbipd.toml").is_symlink()


# ---- the user ----------------------------------------------------------------------------------------------


def take(mac: Mac, kind: str, name: str, key: str, number: int) -> None:
    record = mac.fake / "users" / kind / name
    record.mkdir(parents=True, exist_ok=True)
    (record / key).write_text(f"{number}\n")


def test_an_id_of_a_user_or_group_is_not_free(mac: Mac) -> None:
    take(mac, "Users", "_one", "UniqueID", 400)
    take(mac, "Groups", "_two", "PrimaryGroupID", 399)
    take(mac, "Users", "someone", "UniqueID", 1398)
    install(mac)
    assert (mac.user()["UniqueID"], mac.group()["PrimaryGroupID"]) == ("398", "398")


def test_no_id_is_free(mac: Mac) -> None:
    for number in range(200, 401):
        take(
            mac,
            "Users" if number % 2 else "Groups",
            f"_{number}",
            "UniqueID" if number % 2 else "PrimaryGroupID",
            number,
        )
    mac.unpack()
    done = mac.run("postinstall")
    assert done.returncode != 0
    assert "no id from 200 to 400 is free" in done.stderr
    assert mac.user() == {}
    assert mac.calls_of("launchctl") == []


def test_an_existing_user_keeps_its_id(mac: Mac) -> None:
    take(mac, "Users", "_usbipd", "UniqueID", 271)
    install(mac)
    assert mac.user()["UniqueID"] == "271"
    assert mac.user()["PrimaryGroupID"] == mac.group()["PrimaryGroupID"] == "400"


def test_a_user_that_is_root_is_refused(mac: Mac) -> None:
    take(mac, "Users", "_usbipd", "UniqueID", 0)
    mac.unpack()
    done = mac.run("postinstall")
    assert done.returncode != 0
    assert "has the id 0" in done.stderr
    assert mac.calls_of("launchctl") == []


@pytest.mark.parametrize("words", ["-list /Users", "-list /Groups"])
def test_ids_that_cannot_be_listed_do_not_count_as_free(mac: Mac, words: str) -> None:
    mac.unpack()
    mac.let_fail(70, words)
    assert mac.run("postinstall").returncode != 0
    assert "-create" not in " ".join(mac.calls)


@pytest.mark.slow
def test_an_installation_interrupted_anywhere_can_be_repeated(mac: Mac) -> None:
    install(mac)
    files, user, group, calls = mac.files(), mac.user(), mac.group(), len(mac.calls)
    assert calls > 15
    for number in range(1, calls + 1):
        (mac.fake / "loaded").unlink()
        for kind in ("Users", "Groups"):
            shutil.rmtree(mac.fake / "users" / kind / "_usbipd")
        (mac.fake / "fail-at").write_text(f"{number}\n")
        mac.run("postinstall")
        (mac.fake / "fail-at").unlink()
        done = mac.run("postinstall")
        assert (done.returncode, done.stderr) == (0, ""), number
        assert (mac.files(), mac.has_job) == (files, True), number
        # a group created before the interruption keeps its id, and the user may have got a different one
        uid, gid = mac.user()["UniqueID"], mac.group()["PrimaryGroupID"]
        assert {uid, gid} <= {"399", "400"}, number
        assert mac.user() == user | {"UniqueID": uid, "PrimaryGroupID": gid}, number
        assert mac.group() == group | {"PrimaryGroupID": gid}, number


# ---- launchd refuses ---------------------------------------------------------------------------------------


def test_a_failed_bootstrap_is_retried_up_to_a_bound(mac: Mac) -> None:
    mac.unpack()
    mac.let_fail(5, "launchctl bootstrap", "Bootstrap failed: 5: Input/output error")
    done = mac.run("postinstall")
    assert done.returncode == 0, "all files are installed"
    assert mac.calls_of("launchctl").count("bootstrap") == 5
    assert "kickstart" not in mac.calls_of("launchctl")
    assert "everything is installed, but launchd does not load the job" in done.stdout
    assert "5: Input/output error" in done.stdout
    assert "System Settings > General > Login Items & Extensions" in done.stdout


@pytest.mark.parametrize(
    "message",
    [
        "Bootstrap failed: 119: Service is disabled",
        "Bootstrap failed: 1: Operation not permitted",
        "Bootstrap failed: 155: authorization denied",
    ],
)
def test_a_job_switched_off_by_the_user(mac: Mac, message: str) -> None:
    mac.unpack()
    mac.let_fail(119, "launchctl bootstrap", message)
    done = mac.run("postinstall")
    assert done.returncode == 0
    assert mac.calls_of("launchctl").count("bootstrap") == 1, "no retry"
    assert message in done.stdout
    for step in (
        "1. Open System Settings > General > Login Items & Extensions.",
        "switch usbipd on",
        f"3. Run: sudo launchctl enable system/{LABEL}",
        f"4. Run: sudo launchctl bootstrap system {PLIST}",
    ):
        assert step in done.stdout


def test_the_steps_match_the_doctors(mac: Mac) -> None:
    mac.unpack()
    mac.let_fail(5, "launchctl bootstrap")
    said = " ".join(mac.run("postinstall").stdout.replace("usbipd: ", "").split())
    settings, switch, enable, bootstrap, _look = steps_to_load(Path(PLIST))
    assert settings in said
    assert switch in said
    for step in (enable, bootstrap):
        assert step.removeprefix("Run `").removesuffix("`.") in said


def test_a_job_that_cannot_be_started(mac: Mac) -> None:
    mac.unpack()
    mac.let_fail(3, "launchctl kickstart")
    done = mac.run("postinstall")
    assert done.returncode == 0
    assert "could not start it; see /var/log/usbipd.log and usbipd doctor" in done.stdout


# ---- usbipd-uninstall --------------------------------------------------------------------------------------


@pytest.fixture
def installed(mac: Mac) -> Mac:
    """A Mac on which usbipd has run."""
    install(mac)
    (mac.root / SUPPORT / "usbipd.db").write_text("bindings\n")
    (mac.root / "var/log/usbipd.log.0.bz2").touch()
    (mac.root / "var/run/usbipd").mkdir(parents=True)
    (mac.root / "var/run/usbipd/control.pid").touch()
    (mac.root / "usr/local/bin/other").touch()
    return mac


def test_uninstall_keeps_the_users_files(installed: Mac) -> None:
    done = installed.uninstall()
    assert (done.returncode, done.stderr) == (0, "")
    assert "are kept in /Library/Application Support/usbipd" in done.stdout
    assert set(installed.files()) == {
        f"{SUPPORT}/usbipd.db",
        f"{SUPPORT}/usbipd.toml",
        f"{SUPPORT}/usbipd.toml.default",
        "var/log/usbipd.log",
        "var/log/usbipd.log.0.bz2",
        "usr/local/bin/other",
    }
    assert not installed.has_job
    assert (installed.user(), installed.group()) == ({}, {})
    assert installed.calls[-1] == "pkgutil --forget org.usbipd.pkg"
    assert installed.calls_of("launchctl")[:2] == ["print", "bootout"], "which releases the devices"


def test_purge_removes_all(installed: Mac) -> None:
    done = installed.uninstall("--purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(installed.files()) == {"usr/local/bin/other"}
    assert not (installed.root / SUPPORT).exists()


LINKED = sorted(place for place in LINKS if place.startswith("usr/local/"))


@pytest.mark.parametrize("place", [*LINKED, "usr/local/share/man/man1/usbipd.1"])
def test_a_foreign_link_is_kept(installed: Mac, place: str) -> None:
    target = "../Cellar/usbipd/2.0/Library/usbipd/usbipd"
    (installed.root / place).unlink()
    (installed.root / place).symlink_to(target)
    done = installed.uninstall("--purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert installed.files() == {place: target, "usr/local/bin/other": b""}
    assert f"/{place} is kept: it is a link to {target}, which this package did not create." in done.stdout


@pytest.mark.parametrize("place", LINKED)
def test_a_file_in_place_of_a_link_is_kept(installed: Mac, place: str) -> None:
    (installed.root / place).unlink()
    (installed.root / place).write_text("another usbipd\n")
    done = installed.uninstall("--purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert installed.files() == {place: b"another usbipd\n", "usr/local/bin/other": b""}
    assert f"/{place} is kept: it is not the link" in done.stdout


def test_a_new_installation_uses_the_kept_files(installed: Mac) -> None:
    (installed.root / SUPPORT / "usbipd.toml").write_text("# mine\n")
    installed.uninstall()
    install(installed)
    assert configuration(installed) == "# mine\n"
    assert (installed.root / SUPPORT / "usbipd.db").exists()


def test_a_daemon_that_does_not_stop_keeps_its_files(installed: Mac) -> None:
    installed.load_job(1000)
    before = installed.files()
    done = installed.uninstall("--purge")
    assert done.returncode != 0
    assert "does not stop" in done.stderr
    assert installed.files() == before
    assert installed.user()


def test_a_manually_started_daemon_keeps_its_files(installed: Mac) -> None:
    installed.let_answer(0)
    before = installed.files()
    done = installed.uninstall("--purge")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a daemon is running that launchd did not start" in done.stderr
    assert "`usbipd-ext --status` shows its pid" in done.stderr
    assert installed.files() == before
    assert installed.user()
    installed.let_answer(3)
    assert installed.uninstall("--purge").returncode == 0
    assert not (installed.root / "Library/usbipd").exists()


def test_uninstall_without_a_job(mac: Mac) -> None:
    """No job, no user, no receipt: as after a failed postinstall."""
    mac.unpack()
    (mac.fake / "receipt").unlink()
    assert mac.uninstall().returncode == 0
    assert mac.files() == {}
    assert "-delete" not in " ".join(mac.calls)
    assert "--forget" not in " ".join(mac.calls)


def test_an_interrupted_uninstall_can_be_repeated(installed: Mac) -> None:
    installed.let_fail(70, "dscl . -delete /Groups")
    assert installed.uninstall().returncode != 0
    (installed.fake / "fail").unlink()
    assert installed.uninstall().returncode == 0
    assert (installed.user(), installed.group()) == ({}, {})
    assert not (installed.root / "Library/usbipd").exists()


@pytest.mark.parametrize("arguments", [["--force"], ["--purge", "--purge"], ["purge"], [""]])
def test_uninstall_with_wrong_arguments(installed: Mac, arguments: list[str]) -> None:
    before = installed.files()
    done = installed.uninstall(*arguments)
    assert done.returncode == 2
    assert "usage: usbipd-uninstall [--purge]" in done.stderr
    assert installed.files() == before
    assert installed.calls == []


def test_uninstall_prints_its_usage(installed: Mac) -> None:
    done = installed.uninstall("--help")
    assert done.returncode == 0
    assert "--purge" in done.stdout
    assert installed.calls == []


def test_only_root_may_uninstall(installed: Mac) -> None:
    (installed.fake / "uid").write_text("501\n")
    before = installed.files()
    done = installed.uninstall()
    assert done.returncode == 1
    assert "must be run as root" in done.stderr
    assert installed.files() == before
    assert installed.calls == ["id -u"]
