"""What every command owes its users: help, answers to mistakes, one line for each error."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from asd_policy.cli import COMMANDS, INCOMPLETE, INTERRUPTED, USAGE, images_classifier, main, run
from asd_policy.cli.parsing import parse, wrapped
from asd_policy.errors import DataError
from envs.graphics import RenderingError
from envs.tasks import TASKS
from tests.cli.command_lines import options
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
every_command = pytest.mark.parametrize("name", COMMANDS)


def status(name: str, argv: list[str]) -> int:
    """The exit status of a command in this process."""
    try:
        return main([*name.split(), *argv])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def help_of(name: str, subcommand: list[str], capsys: pytest.CaptureFixture[str], monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    assert status(name, [*subcommand, "--help"]) == 0
    return capsys.readouterr().out


def subcommands(text: str) -> list[list[str]]:
    """Of a help text, each as the words to get its own; the command itself if there are none."""
    usage = re.match(r"usage: .*?\{([\w,-]+)\}", text.split("\n\n")[0], re.DOTALL)
    return [[name] for name in usage[1].split(",")] if usage else [[]]


def test_options_are_read_from_both_kinds_of_help():
    tyro = (
        "│ --out PATH       Where. (required)  │\n│ --windows [STR]                     │\n│        (default: 2 4)   │"
    )
    assert options(tyro) == {"--out PATH": "Where.", "--windows [STR]": ""}
    assert options("options:\n  -h, --help  show\n  --only A [A ...]\n           sections") == {
        "-h, --help": "show",
        "--only A [A ...]": "sections",
    }


@every_command
def test_help_fits_a_terminal_and_explains_each_option(name, capsys, monkeypatch):
    text = help_of(name, [], capsys, monkeypatch)
    assert f"asd-policy {name}" in text
    assert "scripts/" not in text
    for subcommand in subcommands(text):
        told = help_of(name, subcommand, capsys, monkeypatch)
        assert [line for line in told.splitlines() if len(line) > 80] == []
        assert "-h, --help" in options(told)
        bare = [option for option, text in options(told).items() if not text]
        assert bare == []


@every_command
def test_unknown_option_is_answered_with_those_that_exist(name, capsys, monkeypatch):
    text = help_of(name, [], capsys, monkeypatch)
    for subcommand in subcommands(text):
        told = help_of(name, subcommand, capsys, monkeypatch)
        available = re.findall(r"--[a-z][\w.-]*\w", " ".join(options(told)))
        assert status(name, [*subcommand, "--no-such-option"]) == USAGE
        said = capsys.readouterr().err
        assert "--no-such-option" in said
        assert set(available) <= set(re.findall(r"--[a-z][\w.-]*\w", said)) | {"--help"}


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["bench", "--checkpoint", "x", "--sampler", "ddpm"], "Did you mean '--samplers'?"),
        (["bench", "--chekpoint", "x"], "Did you mean '--checkpoint'?"),
        (["bench", "--checkpoint", "x", "--sede=3"], "Did you mean '--seed'?"),
        (["images", "train", "resume", "--out", "x", "--thraeds", "1"], "Did you mean '--threads'?"),
        (["bench", "--checkpoint", "x", "astray"], "Unexpected arguments: astray"),
        (["bench", "--checkpoint", "x", "--seed", "one"], "--seed"),
    ],
)
def test_mistakes_in_a_command_line(argv, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == USAGE
    assert told in capsys.readouterr().err


def test_options_with_underscores_are_known():
    options = ["--data", "x", "--out", "x", "--batch_size", "3"]
    assert parse(images_classifier.Arguments, "", options, "prog").batch_size == 3


def test_descriptions_are_wrapped_and_long_commands_continued(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "Words, " * 10 + "\n\n    asd-policy x --first 1 \\\n        --second-option 2 --third 3\n\nThe end."
    lines = wrapped(text).splitlines()
    assert max(map(len, lines)) <= 40
    command = [line for line in lines if line.startswith("    ")]
    assert len(command) == 2
    assert command[0].endswith(" \\")
    assert " ".join(" ".join(command).replace("\\", "").split()) == "asd-policy x --first 1 --second-option 2 --third 3"
    assert lines[-1] == "The end."


@every_command
@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (DataError("It is\nso."), INCOMPLETE, "DataError: It is\nso.\n"),
        (RenderingError("Dark."), INCOMPLETE, "RenderingError: Dark.\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
    ],
)
def test_errors_are_one_message_and_a_status(name, error, expected, said, monkeypatch, capsys):
    def failing(arguments: object) -> int:
        raise error

    module = import_module(COMMANDS[name].module)
    monkeypatch.setattr(module, "main", failing)
    monkeypatch.setattr(module, "parse", lambda *_: None, raising=False)
    assert run(name, [], "prog") == expected
    assert capsys.readouterr().err == said


WITHOUT = """
import json, sys
package, commands = sys.argv[1], json.loads(sys.argv[2])
sys.modules[package] = None  # not installed
from asd_policy.cli import run
statuses = {}
for name, argv in commands.items():
    print(f"[{name}]", file=sys.stderr)
    try:
        statuses[name] = run(name, argv, f"asd-policy {name}")
    except SystemExit as stopped:
        statuses[name] = stopped.code
print(json.dumps(statuses))
"""


def run_without(package: str, commands: dict[str, list[str]]) -> tuple[dict[str, int], str]:
    """Statuses of commands, and all that they print to stderr, on a machine that lacks a package."""
    words = [sys.executable, "-c", WITHOUT, package, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("package", "doing_without"), [("tyro", {"gpu-check"}), ("rich", {"gpu-check", "data download", "data export"})]
)
def test_without_the_packages_of_the_command_line(package, doing_without):
    needing = [name for name in COMMANDS if name not in doing_without]
    statuses, said = run_without(package, {name: ["--help"] for name in COMMANDS})
    assert statuses == dict.fromkeys(needing, INCOMPLETE) | dict.fromkeys(doing_without, 0)
    assert "Traceback" not in said
    for name in needing:
        told = f"[{name}]\nasd-policy {name} needs {package}. Do: pip install 'asd-policy[{COMMANDS[name].extra}]'\n"
        assert told in said


@pytest.mark.parametrize("package", ["robosuite", "diffusers"])
def test_without_the_simulator_or_diffusers(package, tmp_path):
    task = TASKS["square"]
    checkpoint = str(tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim))
    out = ["--out", str(tmp_path / "out")]
    commands = {
        "robosuite": {"calibrate": [checkpoint], "bench": ["--checkpoint", checkpoint, *out]},
        "diffusers": {"images draw": ["--model", checkpoint, *out], "images train": ["--help"]},
    }[package]
    statuses, said = run_without(package, commands)
    assert statuses == dict.fromkeys(commands, INCOMPLETE)
    assert "Traceback" not in said
    for name in commands:
        assert f"asd-policy {name} needs {package}. Do: pip install 'asd-policy[{COMMANDS[name].extra}]'\n" in said


def test_overview_loads_nothing_that_takes_long():
    words = [sys.executable, "-X", "importtime", "-m", "asd_policy.cli", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ})
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "asd_policy" in loaded
    assert not loaded & {"torch", "numpy", "tyro", "rich", "pydantic", "gymnasium"}
