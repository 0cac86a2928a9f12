"""The secant correction of a kept prediction (one Barzilai-Borwein step per denoising step)."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.verify import inner

MAX_GAIN = 1.5


def secant_gain(dx0: Tensor, dy: Tensor) -> Tensor:
    """How predictions changed by dx0 when their states changed by dy: <dx0, dy> / <dy, dy>, clamped to [0, 1.5].

    dx0, dy (B, K, *E) -> (B, K). Zero where the state did not change.
    """
    slope = inner(dx0, dy) / inner(dy, dy).clamp(min=torch.finfo(dy.dtype).tiny)
    return slope.clamp(0, MAX_GAIN)
