"""What the help of a command lists."""

import io
import re
from contextlib import redirect_stdout, suppress
from functools import cache

from asd_policy.cli import main


def options(text: str) -> dict[str, str]:
    """Option -> its help text, of tyro's boxes or of argparse's list."""
    found: dict[str, str] = {}
    name = ""
    for line in (line.strip("│").rstrip() for line in text.splitlines()):
        begun = re.match(r"\s{1,2}(--?[a-z].*?)(?:\s{2,}(.*))?$", line)
        if begun:
            name = begun[1]
            found[name] = begun[2] or ""
        elif name and re.match(r"\s{5,}\S", line):
            found[name] += " " + line.strip()
        else:
            name = ""
    return {name: re.sub(r"\((default: .*|required)\)", "", told).strip() for name, told in found.items()}


@cache
def help_options(name: str, *subcommand: str, network: str | None = None) -> frozenset[str]:
    """The names of all options of a command, in this process; those of `train` depend on the network."""
    chosen = [] if network is None else ["--network.name", network]
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        main([*name.split(), *subcommand, *chosen, "--help"])
    return frozenset(option for line in options(printed.getvalue()) for option in re.findall(r"--[a-z][\w.-]*", line))
