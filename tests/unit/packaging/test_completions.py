"""The completions, as far as they can be checked without a shell."""

import re

import completions

SPECIFICATION = re.compile(
    r'^  (?:\{-[a-z],)?"?\*?(?P<option>--[a-z-]+)(?:\}")?\[(?:[^]\\]|\\.)*\](?P<rest>.*)"$', re.MULTILINE
)


def test_each_option_of_zsh_has_one_argument_or_none() -> None:
    """Colons are separators (zshcompsys(1), _arguments): one in a message would begin the action."""
    found = {}
    for match in SPECIFICATION.finditer(completions.zsh()):
        parts = re.split(r"(?<!\\):", match["rest"])
        assert len(parts) in (1, 3), match[0]
        found[match["option"]] = parts[1:]
    assert found["--hardware-id"] == [r"VID\:PID", ""]
    assert found["--socket"] == ["PATH", "_files"]
    assert found["--force"] == []
