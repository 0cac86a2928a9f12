"""The command line: `asd-policy COMMAND`. Each command is a module with `Arguments` and `main(arguments) -> int`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from asd_policy.errors import AsdPolicyError

COMPLETE, INCOMPLETE, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: success; an error, or episodes with errors; an invalid command line; interrupted."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        module: the module with its `Arguments` and `main`.
        told: its help line.
        extra: the extra of this package that it needs.
    """

    module: str
    told: str
    extra: str


COMMANDS: Mapping[str, Command] = {
    "collect": Command("asd_policy.cli.collect", "demonstrations of a task's scripted expert", "eval"),
    "train": Command("asd_policy.cli.train", "a diffusion policy on demonstrations", "train"),
    "evaluate": Command("asd_policy.cli.evaluate", "one policy with several samplers on the same seeds", "eval"),
    "sweep": Command("asd_policy.cli.sweep", "samplers over many seeds, in parallel and resumable", "eval"),
    "report": Command("asd_policy.cli.report", "a page and a table of sweeps' results", "eval"),
    "bench": Command("asd_policy.cli.bench", "the latency of samplers beside diffusers' loop", "eval"),
    "calibrate": Command("asd_policy.cli.calibrate", "the windows of window=auto for this machine", "eval"),
    "import": Command("asd_policy.cli.import_checkpoint", "convert or inspect a checkpoint of another library", "cli"),
    "data import": Command(
        "asd_policy.cli.import_data", "convert or inspect demonstrations of other libraries", "train"
    ),
    "data export": Command("asd_policy.cli.export_data", "an episode store as a LeRobotDataset", "train"),
    "data download": Command("asd_policy.cli.download_data", "robomimic's human demonstrations", "all"),
    "images draw": Command("asd_policy.cli.images_draw", "images from a DDPM of diffusers", "all"),
    "images train": Command("asd_policy.cli.images_train", "a class-conditional DDPM of digits", "all"),
    "images bench": Command("asd_policy.cli.images_bench", "cost and quality of image samplers", "all"),
    "images classifier": Command("asd_policy.cli.images_classifier", "the features that measure digits", "all"),
    "gpu-check": Command("asd_policy.cli.gpu_check", "latency, kernels and tests on a GPU", "policy"),
}
"""Name -> command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the process's exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = _named(argv)
    if name is None:
        return _overview(argv)
    return run(name, argv[len(name.split()) :], f"asd-policy {name}")


def script(name: str) -> None:
    """Run a command as a script, and exit with its status."""
    raise SystemExit(run(name, sys.argv[1:], sys.argv[0]))


def run(name: str, argv: Sequence[str], prog: str) -> int:
    """Run the command `name` with these arguments. Returns its exit status; errors are printed in one line."""
    command = COMMANDS[name]
    try:
        module: Any = import_module(command.module)
        parse = getattr(module, "parse", None) or _parse
        return int(module.main(parse(module, list(argv), prog)))
    except ModuleNotFoundError as error:
        package = (error.name or "asd_policy").partition(".")[0]
        if package in ("asd_policy", "envs"):
            raise
        return _failed(f"{prog} needs {package}. Do: pip install 'asd-policy[{command.extra}]'")
    except KeyboardInterrupt:
        return INTERRUPTED
    except AsdPolicyError as error:
        return _failed(f"{type(error).__name__}: {error}")
    except Exception as error:
        if not any(base.__module__ == "gymnasium.error" for base in type(error).__mro__):  # without importing gymnasium
            raise
        return _failed(f"{type(error).__name__}: {error}")


def _parse(module: Any, argv: list[str], prog: str) -> Any:
    from asd_policy.cli.parsing import parse

    return parse(module.Arguments, module.__doc__, argv, prog)


def _named(argv: Sequence[str]) -> str | None:
    """The command at the start of the arguments; two-word commands are tried first."""
    return next((name for n in (2, 1) if (name := " ".join(argv[:n])) in COMMANDS), None)


def _overview(argv: Sequence[str]) -> int:
    """Print the list of commands. Returns the exit status."""
    asked = not argv or argv[0] in ("-h", "--help")
    width = max(map(len, COMMANDS), default=0)
    lines = [f"  {name:{width}}  {command.told}" for name, command in COMMANDS.items()]
    told = "\n".join(["usage: asd-policy COMMAND [OPTIONS]", "", *lines, "", "Each has --help."])
    if asked or argv[0] == "--version":
        from asd_policy import __version__

        print(told if asked else __version__)
        return COMPLETE
    got = " ".join(argv[: 2 if any(name.startswith(f"{argv[0]} ") for name in COMMANDS) else 1])
    close = difflib.get_close_matches(got, COMMANDS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    print(f"Unknown command {got!r}.{hint}\n\n{told}", file=sys.stderr)
    return USAGE


def _failed(message: str) -> int:
    print(message, file=sys.stderr)
    return INCOMPLETE
