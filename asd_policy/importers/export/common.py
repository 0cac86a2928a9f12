"""What the exporters share: tensors as others call them, and saying what a format cannot express."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.importers.checkpoint import Checkpoint, field_name

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


def affine(checkpoint: Checkpoint, *keys: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of y = x * scale + offset over the keys side by side, float64: both survive the way back."""
    scale, offset = (
        torch.cat([checkpoint.tensors[field_name(key, kind)].double() for key in keys]) for kind in ("scale", "offset")
    )
    return torch.where(scale == 0, 1 / NEVER_MOVES, scale), offset


def require(condition: bool, what: str, got: Any, expected: Any) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(f"This format cannot express {what} {got}; it can express {expected}.")
