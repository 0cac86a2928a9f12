"""Shows the losses of a run in TensorBoard or Weights & Biases, where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from asd_policy.errors import ConfigError

Show = Callable[[int, Mapping[str, float]], None]
"""Called with a step and the values measured there."""
PROJECT = "asd-policy"
WANDB_ID = "wandb_id.txt"
"""The file with the run's id at Weights & Biases, so that a resumed run continues there."""


@contextmanager
def _tensorboard(out: Path, settings: Mapping[str, Any]) -> Iterator[Show]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / "tensorboard")) as writer:

        def show(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield show


@contextmanager
def _wandb(out: Path, settings: Mapping[str, Any]) -> Iterator[Show]:
    wandb = import_module("wandb")

    kept = out / WANDB_ID
    known = kept.read_text() if kept.exists() else None
    try:
        run = wandb.init(project=PROJECT, name=out.name, dir=str(out), id=known, resume="allow", config=dict(settings))
    except wandb.Error as error:
        raise ConfigError(f"--track wandb: {error!s:.300} (wandb login, or WANDB_MODE=offline)") from error
    kept.write_text(run.id)
    try:
        yield lambda step, values: run.log(dict(values), step=step)
    finally:
        run.finish()


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
"""Tracker -> the module that it needs."""


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError if a tracker is not installed: before a run's directory is made."""
    for name in MODULES.keys() & {*names}:
        try:
            import_module(MODULES[name])
        except ImportError as error:
            raise ConfigError(f"--track {name} needs {name} (pip install {name}): {error}.") from error


@contextmanager
def tracking(names: Sequence[str], out: Path, settings: Mapping[str, Any]) -> Iterator[Show]:
    """A context in which losses are shown by these trackers.

    Args:
        names: keys of `TRACKERS`.
        out: the run's directory.
        settings: the run's settings, which Weights & Biases shows.

    Raises:
        ConfigError: if a tracker is not installed, or cannot be started.
    """
    check_installed(names)
    with ExitStack() as stack:
        shows = [stack.enter_context(TRACKERS[name](out, settings)) for name in names]

        def show(step: int, values: Mapping[str, float]) -> None:
            for one in shows:
                one(step, values)

        yield show
