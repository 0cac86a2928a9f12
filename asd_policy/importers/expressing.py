"""Shared parts of the writers of other libraries' formats, and their checks of what a format can express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.statistics import reciprocal
from asd_policy.policies.config import PolicyConfig

NEVER_MOVES = 1e30
"""The range written for an ignored entry, so that its every value is normalised to the same number."""


def tensors_below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix; the returned names lack it."""
    return {
        name.removeprefix(prefix): value.detach().cpu().contiguous()
        for name, value in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def spread_and_center(checkpoint: Checkpoint, *keys: str) -> tuple[Tensor, Tensor]:
    """Spread and center of y = (x - center) / spread, (D,) float64, with the keys' entries concatenated.

    Reading them back gives the same normalisation. A constant action entry has spread 0.
    """
    fields = [checkpoint.affine(key) for key in keys]
    scale, offset, center = (torch.cat(values) for values in zip(*fields, strict=True))
    if keys == ("action",):
        still = scale == 0
        return reciprocal(scale), torch.where(still, center, center - offset * reciprocal(scale))
    scale = torch.where(scale == 0, 1 / NEVER_MOVES, scale)
    return 1 / scale, center - offset / scale


def require_common(config: PolicyConfig) -> None:
    """Raise ConfigError if the policy has features that no other library's format expresses."""
    require(not config.quaternions, "observations", "with quaternions of normalised sign", "unchanged quaternions")
    require(config.octaves == 0, "observations", "with octaves", "the values alone")
    expected = {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": True}
    found = {name: getattr(config.scheduler, name) for name in expected}
    require(found == expected, "the scheduler's steps", found, expected)


def require(condition: bool, what: str, got: Any, expected: Any) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"This format cannot express {what} {got}; it can express {expected}.")
