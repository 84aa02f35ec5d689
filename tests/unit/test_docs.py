"""README.md and docs/: links lead somewhere, the index has every page, and our commands in them parse."""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from usbipd.cli import ext
from usbipd.cli import main as usbipd
from usbipd.config import parse
from usbipd.errors import UsageError
from usbipd.simulated import catalog

ROOT: Final = Path(__file__).parents[2]
INDEX: Final = ROOT / "docs/index.md"
PAGES: Final = sorted((ROOT / "docs").glob("*.md"))
READ: Final = [ROOT / "README.md", *PAGES]
LINKED: Final = [
    *READ,
    *sorted((ROOT / "tests").glob("*/README.md")),
    ROOT / "packaging/libusb/README.md",
    *(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
]

PLACEHOLDERS: Final = {
    "BUSID": "1-1",
    "DEVICE": "1-1",
    "HOST": "192.168.1.2",
    "HOST[:PORT]": "192.168.1.2:3240",
    "NETWORK": "192.168.1.0/24",
    "VID:PID": "0781:5567",
}
"""What stands for an argument in the pages, and one of its kind."""

PARSERS: Final = {"usbipd": usbipd.build_parser(), "usbipd-ext": ext.build_parser()}
VERBS: Final = [
    name
    for action in PARSERS["usbipd"]._actions
    if isinstance(action, argparse._SubParsersAction)
    for name in action.choices
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# ---- links -------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """`text` without fenced and indented blocks, and without code in a line."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4,}.*$", "", text, flags=re.M))


def links(page: Path) -> list[str]:
    """Where its links and images lead, in this tree: a path, an anchor, or both."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_are_found() -> None:
    assert sum(len(links(page)) for page in READ) > 50
    assert {"#from-source", "simulated-devices.md"} <= set(links(ROOT / "docs/install.md"))


def test_the_index_has_every_page() -> None:
    named = {link.partition("#")[0] for link in links(INDEX)}
    assert {page.name for page in PAGES if page != INDEX} == {
        link for link in named if re.fullmatch(r"[\w-]+\.md", link)
    }


def test_the_readme_leads_to_the_index() -> None:
    assert "docs/index.md" in links(ROOT / "README.md")


# ---- commands ----------------------------------------------------------------------------------------------


def code(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of code in `text`; and whether they stand in a block, where each is a whole command."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^ {4,}(\S.*)$", text, re.M):
        yield line, True
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            yield line.strip(), True
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^ {4,}\S.*$", "", text, flags=re.M)):
        yield span, False


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """Ours in `text`, in words, with placeholders filled in; and whether they must be whole."""
    for line, whole in code(text):
        for part in re.split(r"\s*(?:\||&&|;|>)\s*", re.sub(r"\s+#.*$", "", line)):
            match = re.match(r"(?:\$ )?(?:sudo )?(?:\.venv/bin/|dist/)?(usbipd(?:-ext)?)(?: (.*))?$", part)
            if match is None:
                continue
            with contextlib.suppress(ValueError):  # a quote that the split has cut
                words = [word for word in shlex.split(match[2] or "") if word != "..."]
                yield [match[1], *(PLACEHOLDERS.get(word, word) for word in words)], whole


def complaint(words: list[str], *, whole: bool) -> str | None:
    """What the parser says against a command; None: nothing.

    In a sentence, it may be a verb with options only.
    """
    if not whole and len(words) == 1:
        return None  # the program itself
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):  # --help, --version
            PARSERS[words[0]].parse_args(words[1:])
    except UsageError as error:
        lacks = re.search(r"arguments (are|.* is) required", str(error))
        is_mention = not whole and all(word.startswith("--") for word in words[2:])
        return None if lacks and is_mention else str(error)
    return None


COMMANDS: Final = [
    (name_of(page), words, whole) for page in READ for words, whole in commands(page.read_text())
]


@pytest.mark.parametrize(
    ("page", "words", "whole"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words, _ in COMMANDS]
)
def test_commands_parse(page: str, words: list[str], whole: bool) -> None:
    assert complaint(words, whole=whole) is None


def test_commands_are_found() -> None:
    found = [words for _, words, _ in COMMANDS]
    for verb in VERBS:
        assert any(words[:2] == ["usbipd", verb] for words in found), verb
    text = "    $ sudo usbipd bind --busid BUSID  # share it\n\nSee `usbipd detach` and `usbipd-ext --run`.\n"
    assert list(commands(text)) == [
        (["usbipd", "bind", "--busid", "1-1"], True),
        (["usbipd", "detach"], False),
        (["usbipd-ext", "--run"], False),
    ]


def test_a_wrong_command_is_noticed() -> None:
    assert complaint(["usbipd", "attach", "1-1"], whole=True)
    assert complaint(["usbipd", "list", "--romote", "x"], whole=False)
    assert complaint(["usbipd-ext"], whole=True)
    assert complaint(["usbipd"], whole=False) is None


def options_in_the_readme() -> list[tuple[str, str]]:
    """Each option that the table of commands names beside a command, with the command."""
    rows = re.findall(r"^\| `usbipd (\w+)[^|]*\| ([^|]+) \|", (ROOT / "README.md").read_text(), re.M)
    return [(verb, option) for verb, text in rows for option in re.findall(r"--[a-z]+", text)]


@pytest.mark.parametrize(("verb", "option"), options_in_the_readme())
def test_the_readme_names_options_that_exist(verb: str, option: str) -> None:
    [verbs] = [a for a in PARSERS["usbipd"]._actions if isinstance(a, argparse._SubParsersAction)]
    assert option in verbs.choices[verb]._option_string_actions


def test_devices_to_simulate_exist() -> None:
    named = [words[words.index("--simulate") + 1] for _, words, _ in COMMANDS if "--simulate" in words[:-1]]
    assert len(named) > 1
    for devices in named:
        assert catalog.parse_simulate(devices)


def test_pieces_of_the_configuration_are_right() -> None:
    blocks = [
        re.sub(r"^    ", "", block, flags=re.M)
        for page in READ
        for block in re.findall(r"(?:^    .*\n)+", page.read_text(), re.M)
        if re.search(r"^    (listen|allow|\[\[access\]\])", block, re.M)
    ]
    assert len(blocks) > 2
    for block in blocks:
        parse(block, "usbipd.toml")


# ---- messages ----------------------------------------------------------------------------------------------

OTHERS: Final = re.compile(r"usbip: |modprobe: |WARNING: |Attach Request |list |make$|libusb-")
"""What begins a message of another program."""


def quoted() -> list[str]:
    """Our messages in the first column of docs/troubleshooting.md; `...` stands for what varies."""
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in spans if " " in span and not OTHERS.match(span)]


def sources() -> str:
    """The texts of the program, in which a string that is continued on the next line is whole."""
    files = [*sorted((ROOT / "usbipd").rglob("*.py")), ROOT / "Makefile"]
    text = "\n".join(path.read_text() for path in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


SOURCES: Final = sources()


@pytest.mark.parametrize("message", quoted())
def test_messages_in_the_pages_are_those_of_the_program(message: str) -> None:
    for part in message.replace("'...'", "...").replace("5 s", "...").split("..."):
        words = part.strip(" :'")
        assert words in SOURCES, words
