"""The roll-out: speculate along a window without the network (Hu et al. 2025, Algorithm 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.drafts.protocol import Guess


class Ahead(NamedTuple):
    """The inputs of a roll-out over W steps."""

    step: Tensor  # (B, W) int64; the last step repeats if the window runs past it
    row: Tensor  # (B, W) int64, the chain of each step
    a: Tensor  # (B, W) the chain's coefficients at these steps
    b: Tensor  # (B, W)
    s: Tensor  # (B, W)
    xi: Tensor  # (B, W, *E) the tape's noise
    u: Tensor  # (B, W) the tape's uniforms
    guess: Guess  # the draft's guesses


def roll_out(x: Tensor, ahead: Ahead, clip: float | None) -> tuple[Tensor, Tensor]:
    """Speculate from x (B, *E): the states y and the draft means mhat, (B, W, *E) each.

    With the guess X_k = clip(offset_k + gain_k y_k): mhat_k = a_k y_k + b_k X_k and y_{k+1} = mhat_k + s_k xi_k.
    """
    a, b = (per_event(coefficient, ahead.xi) for coefficient in (ahead.a, ahead.b))
    noise = per_event(ahead.s, ahead.xi) * ahead.xi
    y, states, means = x, [], []
    window = (tensor.unbind(1) for tensor in (*ahead.guess, a, b, noise))
    for offset, gain, a_k, b_k, noise_k in zip(*window, strict=True):
        x0 = torch.addcmul(offset, gain, y)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        mean = torch.addcmul(a_k * y, b_k, x0)
        states.append(y)
        means.append(mean)
        y = mean + noise_k
    return torch.stack(states, dim=1), torch.stack(means, dim=1)


def per_event(value: Tensor, like: Tensor) -> Tensor:
    """Append singleton dimensions until `value` (B,) or (B, W) broadcasts against `like` (B, [W,] *E)."""
    return value.view(value.shape + (1,) * (like.ndim - value.ndim))
