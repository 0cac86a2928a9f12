"""The command line as a whole: what there is, and what is said of what there is not."""

from importlib.util import find_spec

import pytest

from asd_policy.cli import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview_lists_every_command_and_fits_a_terminal(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.strip().startswith(name) for line in lines) for name in COMMANDS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["swep"], "Did you mean 'sweep'?"),
        (["images", "drow"], "Did you mean 'images draw'?"),
        (["--sweep"], "--sweep"),
    ],
)
def test_unknown_command_lists_what_exists(arguments, told, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert told in said
    assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module(name):
    assert find_spec(COMMANDS[name].module)
