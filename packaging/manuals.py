"""Writes the manual pages into a directory: `manuals.py DIRECTORY`.  Run by `make man`.

argparse-manpage generates usbipd(1) and usbipd-ext(8) from the two parsers; man/*.include adds the prose that
a parser does not have.  usbipd.toml(5) is written by hand.  The pages are reproducible: they do not depend on
clock, terminal or environment.
"""

import argparse
import functools
import re
import sys
import textwrap
from pathlib import Path
from typing import Final

from argparse_manpage.manpage import Manpage

from usbipd import __version__
from usbipd.cli import ext
from usbipd.cli import main as usbipd

SOURCES: Final = Path(__file__).parents[1] / "man"
REVISED: Final = "2026-12-01"
"""The date of the last change of the pages, printed in them."""
TITLE: Final = "usbipd manual"
WIDTH: Final = 66
"""Characters in a source line: escapes must not make it longer than 80."""


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: manuals.py DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in (
        ("usbipd.1", command_page("1", usbipd.build_parser(), "share USB devices with other machines")),
        ("usbipd-ext.8", command_page("8", ext.build_parser(), "the daemon of the USB/IP server usbipd")),
        ("usbipd.toml.5", written_page("usbipd.toml.5")),
    ):
        (directory / name).write_text(page, encoding="utf-8")
    return 0


def command_page(section: str, parser: argparse.ArgumentParser, what_it_is: str) -> str:
    """The page of a command."""
    commands = commands_of(parser)
    synopsis = "\n".join(
        synopsis_of(each) for each in commands or [parser]
    )  # before prepare() takes the usage
    prepare(parser, commands)
    page = Manpage(
        parser,
        format="single-commands-section",
        _data={
            "project_name": "usbipd",
            "version": __version__,
            "manual_title": TITLE,
            "manual_section": section,
            "description": what_it_is,
            "date": REVISED,
            "include": SOURCES / f"{parser.prog}.{section}.include",
        },
    )
    page.add_section("synopsis", "=", synopsis)
    return finish(str(page).replace("@EXAMPLES@\n", examples_of_commands()))


def examples_of_commands() -> str:
    """Those of the help pages of `usbipd`, for the section EXAMPLES."""
    text = ""
    for name in usbipd.SUBCOMMANDS:
        text += f".SS usbipd {name}\n"
        for what, command in usbipd.load(name).examples:
            source = command.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
            lines = "\n".join(re.sub("^ +", "    ", line) for line in source.splitlines())
            what = what.replace("-", r"\-")
            text += f"{what[0].upper()}{what[1:]}:\n.PP\n.RS 4\n.EX\n{lines}\n.EE\n.RE\n.PP\n"
        text = text.removesuffix(".PP\n")
    return text


def commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of its commands."""
    return [
        command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for command in action.choices.values()
    ]


def synopsis_of(parser: argparse.ArgumentParser) -> str:
    """Its usage, with literal text in bold and placeholders in italics."""
    parser.usage = None  # that of the help page leaves options out
    parser.color = False  # else Python 3.14 may add colours
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=10_000)
    usage = parser.format_usage().removeprefix(f"usage: {parser.prog} ").replace("[-h] ", "").strip()
    # An option stays with its value.
    usage = re.sub(r"(-[a-z]|--[a-z-]+) (?=[A-Z{[])", "\\1\N{NO-BREAK SPACE}", usage)
    usage = usage.replace(" ...", "\N{NO-BREAK SPACE}...")
    lines = textwrap.wrap(usage, WIDTH // 2, break_long_words=False, break_on_hyphens=False)
    arguments = "\n".join(lines).replace("-", r"\-")
    arguments = re.sub(
        r"(?<=[\[ ])\\-[a-zA-Z]\b|\\-\\-[a-z\\-]+|(?<=[{,])[a-z]+", r"\\fB\g<0>\\fR", arguments
    )
    arguments = re.sub(r"\b(?<!\\f)[A-Z]{2,}\b|\bN\b", r"\\fI\g<0>\\fR", arguments)
    arguments = arguments.replace("\N{NO-BREAK SPACE}", r"\ ")
    command = parser.prog.replace("-", r"\-").replace(" ", r"\ ")
    return f".SY {command}\n{arguments}\n.YS"


def prepare(parser: argparse.ArgumentParser, commands: list[argparse.ArgumentParser]) -> None:
    """Remove from the parsers what the page has elsewhere, and set what the page words differently."""
    parser.formatter_class = functools.partial(argparse.HelpFormatter, width=WIDTH)
    parser.epilog = None
    parser.description = None
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                group.title = "commands"
                for choice in action._choices_actions:
                    choice.help = None  # the description says the same
    for command in commands:
        command.usage = argparse.SUPPRESS
        for group in command._action_groups:
            group.title = None


def finish(page: str) -> str:
    """`page` in the style of man(7): a readable date, one space between options, code in bold."""
    page = page.replace(REVISED.replace("-", r"\-"), REVISED)
    page = re.sub(r"\n{2,}", "\n", page)
    page = re.sub(
        "^.SH WITH --([A-Z]+)$", lambda title: rf".SS With \-\-{title[1].lower()}", page, flags=re.M
    )
    return re.sub("`([^`]+)`", r"\\fB\1\\fR", page)


def written_page(name: str) -> str:
    """A page written by hand, with this version."""
    page = (SOURCES / name).read_text(encoding="utf-8")
    return page.replace("@DATE@", REVISED).replace("@VERSION@", __version__)


if __name__ == "__main__":
    sys.exit(main())
