"""Rules for every workflow of .github/workflows; `make lint` checks them against their schema."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import check_tag
import pytest

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
JOB = re.compile(r"(?m)^  (\w+):\n((?:    .*\n|\n)+)")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def text(request: pytest.FixtureRequest) -> str:
    path: Path = request.param
    return path.read_text()


def test_actions_are_named_by_commit_with_their_version(text: str) -> None:
    lines = [line.strip() for line in text.splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.fullmatch(r"(- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_every_job_has_a_timeout_and_only_publish_may_write(text: str) -> None:
    jobs = dict(JOB.findall(text.partition("\njobs:\n")[2]))
    assert jobs
    assert re.search(r"(?m)^permissions:( \{\}|\n  contents: read)$", text)
    for name, job in jobs.items():
        assert "    timeout-minutes: " in job, name
        assert name == "publish" or ": write" not in job, name


def test_no_expression_is_pasted_into_a_shell(text: str) -> None:
    """A branch may be named $(anything): external values go through the environment."""
    for script in re.findall(r"run: (\|\n(?: {10}.*\n)+|.*\n)", text):
        assert "${{" not in script, script


def test_the_scripts_it_runs_exist(text: str) -> None:
    for script in re.findall(r"(?m)(?:^|[ ;|])((?:\.ci|packaging|tests)/[\w./-]+)(?=[ ;\n])", text):
        path = ROOT / script
        assert path.exists(), script
        assert path.is_dir() or path.suffix == ".py" or os.access(path, os.X_OK), script


def steps(job: str) -> list[str]:
    """The steps of a job of the release workflow."""
    jobs = dict(JOB.findall(RELEASE.read_text().partition("\njobs:\n")[2]))
    return re.findall(r"(?m)^ {6}- .*\n(?:(?: {8}.*)?\n)*", jobs[job])


def test_only_signing_runs_while_the_identities_exist() -> None:
    macos = steps("macos")
    [begin] = [number for number, step in enumerate(macos) if "release/import-identities" in step]
    [end] = [number for number, step in enumerate(macos) if "security delete-keychain" in step]
    assert macos[begin + 1 : end] == ["      - run: make binary pkg\n"]
    assert "if: always()" in macos[end]
    secret = [number for number, step in enumerate(macos) if "secrets." in step]
    tests = [number for number, step in enumerate(macos) if re.search("make test|try-package", step)]
    assert len(secret) == len(tests) == 2
    assert max(secret) < min(tests)


def test_modules_and_executable_for_macos_are_built_with_our_libusb() -> None:
    macos = steps("macos")
    [ours] = [number for number, step in enumerate(macos) if "packaging/libusb/libusb_build.py" in step]
    assert "PKG_CONFIG_PATH=$PWD/build/libusb/macos/lib/pkgconfig" in macos[ours]
    [modules] = [number for number, step in enumerate(macos) if "run: make build" in step]
    assert ours < modules


@pytest.mark.parametrize("job", ["macos", "linux"])
def test_a_release_fetches_its_usb_ids(job: str) -> None:
    found = steps(job)
    [fetch] = [number for number, step in enumerate(found) if "run: make usb-ids" in step]
    [binary] = [number for number, step in enumerate(found) if "run: make binary" in step]
    assert fetch < binary


@pytest.mark.parametrize("moved", [False, True])
def test_a_moved_tag_is_not_published(tmp_path: Path, moved: bool) -> None:
    [step] = [step for step in steps("publish") if "gh release create" in step]
    script = textwrap.dedent(step.partition("run: |\n")[2])
    built, calls, gh = "1" * 40, tmp_path / "calls", tmp_path / "gh"
    gh.write_text(
        f'#!/bin/sh\necho "$*" >>"{calls}"\n[ "$1" != api ] || echo {"2" * 40 if moved else built}\n'
    )
    gh.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", script],  # as GitHub runs it
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "GH_REPO": "owner/usbipd",
            "GITHUB_REF_NAME": "v1.2.3",
            "GITHUB_SHA": built,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    asked, *published = calls.read_text().splitlines()
    assert asked == "api repos/owner/usbipd/commits/tags/v1.2.3 --jq .sha"
    if moved:
        assert (done.returncode, published) == (1, [])
        assert "the tag v1.2.3 is at 2222" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert len(published) == 1
        assert published[0].startswith("release create v1.2.3 --verify-tag ")


@pytest.mark.parametrize(
    ("form", "code"), [("v{}", 0), ("v{}.1", 1), ("v{}-rc1", 1), ("{}", 1), ("v1{}", 1), ("release-{}", 1)]
)
def test_a_tag_names_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str, code: int
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tag = form.format(version)
    monkeypatch.setattr(sys, "argv", ["check_tag.py", tag])
    assert check_tag.main() == code
    said = f"the tag is {tag}, but pyproject.toml has the version {version}\n"
    assert capsys.readouterr().err == (said if code else "")


CRASH = '{"app_name":"%s","timestamp":"2026-12-01 09:40:25.00 +0000"}\n{\n  "procName" : "%s"\n}\n'
"""The beginning of a crash report of macOS."""


@pytest.mark.parametrize(
    ("file", "process", "code"),
    [
        ("Xcode-1.ips", "Xcode", 0),
        ("python3.12-1.ips", "python3.12", 1),
        ("Python-1.ips", "Python", 1),
        ("usbipd-ext-1.ips", "usbipd-ext", 1),
        ("panic-full-1.panic", "", 1),
    ],
)
def test_our_crashes_fail_the_workflow(tmp_path: Path, file: str, process: str, code: int) -> None:
    reports, output = tmp_path / "DiagnosticReports", tmp_path / "output"
    (reports / "Retired").mkdir(parents=True)
    (reports / "Retired" / file).write_text(CRASH % (process, process))
    old = reports / "python3-0.ips"
    old.write_text(CRASH % ("python3", "python3"))
    os.utime(old, (0, 0))
    done = subprocess.run(
        [ROOT / ".ci/crash-reports", output, tmp_path / "absent", reports],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert [path.name for path in output.iterdir()] == [file]
    assert (file in done.stderr) == bool(code)


@pytest.mark.parametrize(("sign", "answer"), [("true", "runs"), ("echo 'kill -9 $$' >", "is refused")])
def test_whether_a_mac_runs_a_program_with_the_entitlement(tmp_path: Path, sign: str, answer: str) -> None:
    """Its programs are fakes: one codesign succeeds, and one makes a program that is killed."""
    for name, script in {
        "csrutil": "echo System Integrity Protection status: disabled.",
        "codesign": f'for last; do :; done; {sign} "$last"',
        "sudo": '"$@"',
        "cc": 'printf "#!/bin/sh\\n" >"$2"; chmod +x "$2"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci/usb-devices-of-software"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    protection, *answers = done.stdout.splitlines()
    assert protection.endswith("disabled.")
    assert [line.partition("ad hoc, ")[2] for line in answers] == [answer, f"{answer} as root"]
