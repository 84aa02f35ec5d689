"""Real shells that complete command lines with the output of `make completions`."""

import os
import pty
import re
import select
import shlex
import subprocess
import time
from pathlib import Path
from typing import ClassVar, Final, Protocol

from tests.integration.daemon import PATIENCE

TO_BEGIN: Final = "\x01"
TO_END: Final = "\x05"
"""Keys of both line editors: Ctrl-A and Ctrl-E."""


class Shell(Protocol):
    """A shell that has loaded our completions."""

    def complete(self, line: str) -> list[str]:
        """The completions of the last word of `line`.  Fails if the shell reports an error."""

    def close(self) -> None:
        """Ends it."""


class TerminalShell:
    """A shell at a terminal.

    One key writes all completions into the line.  The line then gets a prefix that prints it, word
    by word, so the display of the shell does not matter.
    """

    COMMAND: ClassVar[tuple[str, ...]]
    ALL_COMPLETIONS: ClassVar[str]
    """The key."""
    SET_UP: ClassVar[tuple[str, ...]]
    """Lines that load our completions from $COMPLETIONS."""

    def __init__(self, completions: Path, environment: dict[str, str]) -> None:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            self.COMMAND,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "COMPLETIONS": str(completions), "TERM": "vt100"},
            start_new_session=True,
        )
        os.close(theirs)
        self._asked = 0
        for line in self.SET_UP:
            self._type(f"{line}\n")
        self._words_of("")

    def complete(self, line: str) -> list[str]:
        words = self._words_of(line + self.ALL_COMPLETIONS)
        kept = shlex.split(line if line.endswith(" ") else line.rpartition(" ")[0])
        assert words[: len(kept)] == kept
        found = words[len(kept) :]
        return [] if found == shlex.split(line)[len(kept) :] else found  # else the key has changed nothing

    def close(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._terminal)

    def _words_of(self, keys: str) -> list[str]:
        """The words of the line that `keys` produce."""
        self._asked += 1
        begin, end = f"BEGIN{self._asked}", f"END{self._asked}"
        # Quoted in the middle, they differ from their echo on the terminal.
        self._type(f"{keys}{TO_END} 'E''{end[1:]}'{TO_BEGIN}printf '<%s>' 'B''{begin[1:]}' \n")
        shown = self._read_until(f"<{end}>")
        assert "not found" not in shown, shown
        return re.findall("<([^>]*)>", shown.rpartition(f"<{begin}>")[2])[:-1]

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _read_until(self, end: str) -> str:
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while end.encode() not in shown:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing more came after:\n{shown.decode(errors='replace')}"
            shown += os.read(self._terminal, 65536)
        return shown.decode(errors="replace")


class Bash(TerminalShell):
    COMMAND = ("bash", "--norc", "--noprofile", "-i")
    ALL_COMPLETIONS = "\x1b*"
    SET_UP = ('source "$COMPLETIONS/usbipd.bash"',)


class Zsh(TerminalShell):
    COMMAND = ("zsh", "-f", "-i")
    ALL_COMPLETIONS = "\x18a"
    SET_UP = (
        'fpath=("$COMPLETIONS" $fpath)',
        "autoload -Uz compinit && compinit -u -D",
        "zle -C all-matches complete-word _generic; bindkey -e; bindkey '^Xa' all-matches",
        "zstyle ':completion:all-matches::::' completer _all_matches _complete",
        "zstyle ':completion:all-matches:*' insert true",
    )


class Fish:
    """fish can list its completions."""

    def __init__(self, completions: Path, environment: dict[str, str]) -> None:
        self._file = completions / "usbipd.fish"
        self._environment = environment

    def complete(self, line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(self._file), line],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=self._environment,
            check=False,
        )
        assert done.stderr == ""
        return [each.partition("\t")[0] for each in done.stdout.splitlines()]

    def close(self) -> None:
        pass


SHELLS: Final[dict[str, type[TerminalShell] | type[Fish]]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}
