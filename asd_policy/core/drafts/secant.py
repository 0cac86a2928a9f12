"""The secant correction: how a step's prediction follows its state, measured and pooled over earlier steps.

A step that was evaluated in two rounds shows how its prediction changed, dX, when its state changed by dy. One such
pair is a noisy estimate of the gain dX / dy of a single element of the event. Neighbouring steps have nearly the same
gain, so each step pools the pairs of some steps up to it. A later step's pair was measured at a state that contains
this step's own noise: it would break the rule of `Draft`. A few pairs count little against the prior gain.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.verify import inner

TAPS = 5  # steps that are pooled; torch.compile unrolls a sum of so few, so that pooling is part of another kernel
WIDTH = 12.0  # standard deviation of the pooling weights, in steps
PRIOR_GAIN = 0.3  # at the last step; it falls with the square of the step
PRIOR_WEIGHT = 1.5  # of the prior gain, in pairs
MAX_GAIN = 1.5
SMALLEST = 1e-12  # mean square of dy below which float32's rounding would be measured


def secant_evidence(dx0: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """What one pair of evaluations says about the gain of each element: dx0, dy (B, W, *E) -> two (B, W, *E).

    The numerator dx0 dy / q and the denominator dy dy / q of a regression of dx0 on dy, where q is the mean square of
    dy over the elements: every pair counts the same. Both are zero where dy is too small or too large to tell.
    """
    per_event = (...,) + (None,) * (dy.ndim - 2)
    size = inner(dy, dy)
    scale = size / dy[0, 0].numel()
    usable = ((scale > SMALLEST) & size.isfinite())[per_event]
    root = scale.sqrt()[per_event]
    unit = dy / root
    return torch.where(usable, dx0 / root * unit, 0), torch.where(usable, unit * unit, 0)


def pooled_gain(numerator: Tensor, denominator: Tensor, step: Tensor) -> Tensor:
    """The gain of each element at the steps (B, W), from the evidence (B, K, *E): (B, W, *E), in [0, 1.5].

    A ridge regression: (PRIOR_WEIGHT g_k + sum_j w_kj numerator_j) / (PRIOR_WEIGHT + sum_j w_kj denominator_j) over the
    steps j = k, k - 2, k - 6, k - 12, k - 20, with w_kj = exp(-(k - j)^2 / (2 WIDTH^2)) and the prior gain
    g_k = PRIOR_GAIN (k / K)^2. In plain torch it takes the memory of 2 TAPS tensors (B, W, *E); compiled, of none.
    """
    per_event, dtype = (...,) + (None,) * (numerator.ndim - 2), numerator.dtype
    tap = torch.arange(TAPS, device=step.device)
    back = tap * (tap + 1)
    source = step.unsqueeze(2) - back  # (B, W, TAPS)
    weight = torch.where(source >= 0, torch.exp(-((back.to(dtype) / WIDTH) ** 2) / 2), 0)[per_event]
    at = torch.arange(len(step), device=step.device).view(-1, 1, 1), source.clamp(min=0)
    above, below = ((weight * evidence[at]).sum(dim=2) for evidence in (numerator, denominator))
    prior = PRIOR_GAIN * (step.to(dtype) / numerator.shape[1]).square()[per_event]
    return ((PRIOR_WEIGHT * prior + above) / (PRIOR_WEIGHT + below)).clamp(0, MAX_GAIN)
