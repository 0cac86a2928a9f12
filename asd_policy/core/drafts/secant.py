"""The secant correction: how a step's prediction follows its state, measured and pooled over earlier steps.

A step that was evaluated in two rounds shows how its prediction changed, dX, when its state changed by dy. One such
pair is a noisy estimate of the gain dX / dy, above all for a single element of the event. Neighbouring steps have
nearly the same gain, so each step pools the pairs of the steps up to it. A later step's pair was measured at a state
that contains this step's own noise: it would break the rule of `Draft`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.verify import inner

MAX_GAIN = 1.5
WIDTH = 12.0  # standard deviation of the pooling weights, in steps
TAPS = 8  # steps that are pooled. torch.compile unrolls a sum of up to 8, so that pooling is part of another kernel
SHRINKAGE = 1.0  # of an element's gain towards the one that all elements have in common
SMALLEST = 1e-12  # mean square of dy below which float32's rounding would be measured


def secant_evidence(dx0: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """What one pair of evaluations says about the gains: dx0, dy (B, W, *E) -> two (B, W, *E).

    For each element, the numerator and the denominator of a regression of dx0 on dy,

        dx0 dy / q + SHRINKAGE r    and    dy dy / q + SHRINKAGE,

    where q is the mean square of dy over the elements, and r = <dx0, dy> / <dy, dy>, clamped to [0, 1.5], is the gain
    that all elements have in common. Both are zero where dy is too small or too large to tell.
    """
    per_event = (...,) + (None,) * (dy.ndim - 2)
    size = inner(dy, dy)
    scale = size / dy[0, 0].numel()
    usable = ((scale > SMALLEST) & size.isfinite())[per_event]
    common = (inner(dx0, dy) / size).clamp(0, MAX_GAIN)[per_event]
    root = scale.sqrt()[per_event]
    unit = dy / root
    numerator = dx0 / root * unit + SHRINKAGE * common
    denominator = unit * unit + SHRINKAGE
    return torch.where(usable, numerator, 0), torch.where(usable, denominator, 0)


def pooled_gain(numerator: Tensor, denominator: Tensor, step: Tensor) -> Tensor:
    """The gain of each element at the steps (B, W), from the evidence (B, K, *E): (B, W, *E), in [0, 1.5].

    The numerators of the steps k, k - 1, k - 3, k - 6, k - 10, k - 15, k - 21 and k - 28, weighted by
    exp(-back^2 / (2 WIDTH^2)), over their denominators; zero where none of these steps has evidence. In plain torch it
    takes the memory of 2 TAPS tensors (B, W, *E); compiled, of none.
    """
    tap = torch.arange(TAPS, device=step.device)
    back = tap * (tap + 1) // 2
    source = step.unsqueeze(2) - back  # (B, W, TAPS)
    weight = torch.where(source >= 0, torch.exp(-((back / WIDTH) ** 2) / 2), 0)
    weight = weight[(...,) + (None,) * (numerator.ndim - 2)]
    at = torch.arange(len(step), device=step.device).view(-1, 1, 1), source.clamp(min=0)
    above, below = ((weight * evidence[at]).sum(dim=2) for evidence in (numerator, denominator))
    return torch.where(below > 0, above / below, 0).clamp(0, MAX_GAIN)
