"""The output, error and exit code of a command.  Runs in the caller's process.

Data goes to stdout, messages to stderr.  An error is two lines, what is wrong and what to try; under `--json`
stdout gets it as a document too.  Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no extension answers,
`INTERRUPTED` and `BROKEN_PIPE`.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from usbipd.errors import BROKEN_PIPE, INTERRUPTED, ExtensionUnreachableError, UsbipdError
from usbipd.text import readable

Name = TypeVar("Name")
"""Converted by `str`."""


def emit(text: str) -> None:
    """Write data to stdout and flush it."""
    try:
        if text:  # an unbuffered stdout can fail on an empty write
            print(text, end="")
        if sys.stdout is not None:  # the caller may have closed it
            sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            sys.exit(BROKEN_PIPE)
        raise UsbipdError(f"cannot write the output: {error.strerror}", code="output") from error


def say(text: str) -> None:
    """Print a message on stderr; dropped if it cannot be written."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def run_to_exit_code(program: str, argv: Sequence[str], command: Callable[[], int]) -> int:
    """Run `command` to its exit code, printing a `UsbipdError` in the name of `program`."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            code = command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        emit("")  # flush what argparse printed for --help and --version
        return code
    except UsbipdError as error:
        print_error(program, error, as_json="--json" in argv)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def run_each(program: str, names: Sequence[Name], do: Callable[[Name], None], *, as_json: bool) -> int:
    """Call `do` for each name, even after a failure; the exit code of the first failure, else 0.

    Raises the `UsbipdError` of a single name, and `ExtensionUnreachableError`: the rest would fail too.
    """
    code = 0
    for name in names:
        try:
            do(name)
        except UsbipdError as error:
            if len(names) == 1 or isinstance(error, ExtensionUnreachableError):
                raise
            if not any(each in error.message for each in (str(name), repr(str(name)))):
                error.message = f"{name}: {error.message}"
            print_error(program, error, as_json=as_json)
            code = code or error.exit_code
    return code


def print_error(program: str, error: UsbipdError, *, as_json: bool) -> None:
    """Print `error` for people, and under `--json` for programs.  It may quote what was typed."""
    error.message = _cleaned(error.message)
    error.advice = None if error.advice is None else _cleaned(error.advice)
    say(f"{program}: {error.message}")
    if error.advice is not None:
        from usbipd.spelling import Spelling  # here: most commands print no advice

        say(f"hint: {_cleaned(Spelling.here().spell(error.advice))}")
    if as_json:
        # Imported here: most errors are printed without JSON.
        from usbipd.cli.documents import error_document, render

        with contextlib.suppress(UsbipdError):
            emit(render(error_document(error)))


def _cleaned(text: str) -> str:
    return "\n".join(map(readable, text.split("\n")))
