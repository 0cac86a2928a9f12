"""What the exporters share: tensors as others call them, and saying what a format cannot express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.statistics import reciprocal
from asd_policy.policies.config import SchedulerConfig

NEVER_MOVES = 1e30
"""Range of an entry that the policy ignores: whatever its value, it is normalised to the same number."""

STEADY_SIGNS = ("observations", "with quaternions of steady sign", "those that the environment gives")
OCTAVES = ("observations", "with octaves", "the values alone")


def tensors_below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The tensors below the prefix, named without it."""
    return {
        name.removeprefix(prefix): value.detach().cpu().contiguous()
        for name, value in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def spread_and_center(checkpoint: Checkpoint, *keys: str) -> tuple[Tensor, Tensor]:
    """y = (x - center) / spread over the keys side by side, float64: both survive the way back.

    The spread of an action that has one value only is 0.
    """
    fields = [checkpoint.affine(key) for key in keys]
    scale, offset, center = (torch.cat(values) for values in zip(*fields, strict=True))
    if keys == ("action",):
        still = scale == 0
        return reciprocal(scale), torch.where(still, center, center - offset * reciprocal(scale))
    scale = torch.where(scale == 0, 1 / NEVER_MOVES, scale)
    return 1 / scale, center - offset / scale


def require_whole_chain(scheduler: SchedulerConfig) -> None:
    """Raise ConfigError where fewer steps than all would be others than these libraries take."""
    expected = {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True}
    found = {name: getattr(scheduler, name) for name in expected}
    require(found == expected, "the scheduler's steps", found, expected)


def require(condition: bool, what: str, got: Any, expected: Any) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"This format cannot express {what} {got}; it can express {expected}.")
