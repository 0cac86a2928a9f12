"""Exponential moving average of the weights. Policies are shipped with the averaged weights."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

POWER = 0.75
MAX_DECAY = 0.9999


def ema_decay(step: int) -> float:
    """Decay after `step` updates: 1 - (1 + step)^-0.75, the warm-up of Diffusion Policy."""
    decay: float = 1 - (1 + step) ** -POWER
    return min(MAX_DECAY, decay)


@torch.no_grad()
def _update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
    torch._foreach_lerp_(list(averaged), list(current), 1 - ema_decay(int(num_averaged)))


def make_ema(model: nn.Module) -> AveragedModel:
    """The running average of `model`. `update_parameters(model)` updates it; `.module` holds the averaged network."""
    return AveragedModel(model, multi_avg_fn=_update)
