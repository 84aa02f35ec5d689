"""Exits with 1 unless a tag matches the version in pyproject.toml: `check_tag.py vX.Y.Z`.

Run by .github/workflows/release.yml, before anything is built.
"""

import sys
import tomllib
from pathlib import Path


def main() -> int:
    """The exit code."""
    tag = sys.argv[1]
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    if tag == f"v{project['version']}":
        return 0
    print(f"the tag is {tag}, but pyproject.toml has the version {project['version']}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
