"""Finds the policy in the folder of a lerobot training run.

lerobot writes `RUN/checkpoints/040000/pretrained_model` and `.../training_state` at each saved step, and the link
`RUN/checkpoints/last` to the last of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

from asd_policy.errors import CheckpointError
from asd_policy.importers.checkpoint import CONFIG

PRETRAINED, STEPS, LAST = "pretrained_model", "checkpoints", "last"
AVERAGED = "pretrained_model_ema"
"""The folder of averaged weights (EMA), in the folder of the plain weights or beside it."""

STEP_CONFIG = re.compile(rf"(?:{STEPS}/)?(\d+)/{PRETRAINED}/{CONFIG}")


def policy_folder(path: Path) -> Path:
    """The folder of the policy in a step's folder or in a run's; any other path unchanged.

    Of a run, `checkpoints/last` is read, as lerobot does to resume; without that link the highest step. A warning names
    the step, and the others.

    Raises:
        CheckpointError: if `checkpoints/last` is a link to a step that has no policy.
    """
    if not path.is_dir() or (path / CONFIG).exists():
        return path
    if (path / PRETRAINED / CONFIG).is_file():
        return path / PRETRAINED
    for folder in (path / STEPS, path):
        steps = [file.parts[-3] for file in folder.glob(f"*/{PRETRAINED}/{CONFIG}") if file.parts[-3].isdecimal()]
        if steps:
            return folder / _chosen(folder, steps) / PRETRAINED
    return path


def step_in_repository(names: Iterable[str], where: str) -> str | None:
    """The folder of the highest step's policy among a repository's file names; None if it holds no steps."""
    found = {match[1]: name for name in names if (match := STEP_CONFIG.fullmatch(name))}
    if not found:
        return None
    step = _highest(found)
    _tell(where, step, found)
    return found[step].removesuffix(f"/{CONFIG}")


def _chosen(folder: Path, steps: Collection[str]) -> str:
    last = folder / LAST
    step = last.resolve().name if last.is_symlink() else _highest(steps)
    if step not in steps:
        raise CheckpointError(
            f"{last} is a link to {step}, which holds no policy. Pass the folder of a step: "
            f"{', '.join(str(folder / one) for one in sorted(steps, key=int))}."
        )
    _tell(str(folder), step, steps)
    return step


def _highest(steps: Iterable[str]) -> str:
    return max(steps, key=int)


def _tell(where: str, step: str, steps: Collection[str]) -> None:
    others = ", ".join(sorted(set(steps) - {step}, key=int)) or "none"
    warnings.warn(
        f"{where} is a training run of lerobot. Its step {step} is read; other steps: {others}. For another step, pass "
        f"the folder STEP/{PRETRAINED}.",
        stacklevel=2,
    )
