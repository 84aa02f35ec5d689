"""What must hold in every workflow of .github/workflows; `make lint` holds them against their schema."""

import re
import sys
import tomllib
from pathlib import Path

import check_tag
import pytest

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
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


def test_every_job_ends_and_may_write_only_to_publish(text: str) -> None:
    jobs = dict(JOB.findall(text.partition("\njobs:\n")[2]))
    assert jobs
    assert re.search(r"(?m)^permissions:( \{\}|\n  contents: read)$", text)
    for name, job in jobs.items():
        assert "    timeout-minutes: " in job, name
        assert name == "publish" or ": write" not in job, name


def test_no_expression_is_pasted_into_a_shell(text: str) -> None:
    """A branch may be called $(anything): what comes from outside goes through the environment."""
    for script in re.findall(r"run: (\|\n(?: {10}.*\n)+|.*\n)", text):
        assert "${{" not in script, script


@pytest.mark.parametrize(("suffix", "code"), [("", 0), (".1", 1), ("-rc1", 1)])
def test_a_tag_names_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suffix: str, code: int
) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    monkeypatch.setattr(sys, "argv", ["check_tag.py", f"v{version}{suffix}"])
    assert check_tag.main() == code
    said = f"the tag is v{version}{suffix}, but pyproject.toml has the version {version}\n"
    assert capsys.readouterr().err == (said if code else "")
