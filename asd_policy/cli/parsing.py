"""Parses command lines with tyro: help that fits the terminal, and suggestions for unknown options."""

from __future__ import annotations

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from typing import Any, cast

from asd_policy.errors import UnknownNameError

DESCRIPTION = "DESCRIPTION"
"""A placeholder for the description in tyro's help, because tyro does not wrap it."""


def parse(arguments: Any, description: str, argv: Sequence[str], prog: str) -> Any:
    """Parse an object of the type `arguments`: a dataclass, or a union of dataclasses, which become subcommands.

    Raises:
        SystemExit: with status 0 after --help; with status 2 and a message on an invalid command line.
    """
    import tyro

    read = partial(tyro.cli, arguments, prog=prog, description=DESCRIPTION)
    if "-h" in argv or "--help" in argv:
        usage, _, rest = _help(read, argv).partition("\n\n")
        print(
            _filled(usage, indent=len("usage: ")), rest.replace(DESCRIPTION, wrapped(description)), sep="\n\n", end=""
        )
        raise SystemExit(0)
    try:
        found, unknown = cast(tuple[Any, list[str]], read(args=list(argv), return_unknown_args=True))
    except SystemExit:  # tyro has printed the mistake, but no suggestion
        _tell_unknown(read, argv, [word for word in argv if word.startswith("--")])
        raise
    if unknown:
        if not _tell_unknown(read, argv, [word for word in unknown if word.startswith("-")]):
            print(f"Unexpected arguments: {' '.join(unknown)}", file=sys.stderr)
        print(f"See {prog} --help", file=sys.stderr)
        raise SystemExit(2)
    return found


def wrapped(text: str) -> str:
    """Wrap a docstring to the terminal's width. Longer shell commands continue after a backslash."""
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent(text).strip())
    return "\n\n".join(
        "\n".join(_wrapped_commands(paragraph)) if paragraph[0].isspace() else _filled(paragraph)
        for paragraph in paragraphs
    )


def _width() -> int:
    return shutil.get_terminal_size().columns


def _filled(paragraph: str, indent: int = 0) -> str:
    """Wrap a paragraph, with all lines but the first indented."""
    return textwrap.fill(paragraph, _width(), subsequent_indent=" " * indent, break_on_hyphens=False)


def _wrapped_commands(paragraph: str) -> list[str]:
    """Wrap shell commands. Their own line breaks are kept if the lines fit."""
    lines = paragraph.splitlines()
    if max(map(len, lines)) <= _width():
        return lines
    lines = []
    for command in re.sub(r"\\\n\s*", "", paragraph).splitlines():
        indent = command[: len(command) - len(command.lstrip())]
        parts = textwrap.wrap(
            command.strip(),
            _width() - 2,
            initial_indent=indent,
            subsequent_indent=2 * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [f"{part} \\" for part in parts[:-1]] + parts[-1:]
    return lines


def _help(read: Callable[..., Any], argv: Sequence[str]) -> str:
    """tyro's --help for the same subcommand."""
    printed = io.BytesIO()
    # In the terminal's encoding, which selects tyro's box characters.
    with redirect_stdout(io.TextIOWrapper(printed, sys.stdout.encoding, write_through=True)) as text:
        with suppress(SystemExit):
            read(args=[*argv, "--help"])
        return printed.getvalue().decode(text.encoding)


def _tell_unknown(read: Callable[..., Any], argv: Sequence[str], options: Sequence[str]) -> bool:
    """Print the unknown options and the known ones. Returns whether there was an unknown one."""
    subcommand = [word for word in argv[:1] if not word.startswith("-")]
    # An option begins right after the border of its box, and its text after two spaces.
    named = re.findall(r"^[│| ] ?(-.*?)(?:  |$)", _help(read, subcommand), re.MULTILINE)
    available = {name for names in named for name in re.findall(r"--[a-z][\w.-]*", names)}
    written = [word.partition("=")[0].replace("_", "-") for word in options]
    unknown = [option for option in written if option not in available]
    for option in unknown:
        print(UnknownNameError("option", option, available), file=sys.stderr)
    return bool(unknown)
