"""The path draft: each step's guess is that step's own prediction from the round before.

Step k consumes row k of the tape in every round, so the speculated path of one round lies close to the next one's. This
is a Picard iteration with common noise as in ParaDiGMS (Shih et al. 2023, https://arxiv.org/abs/2305.16317), but with
exact verification. A prediction at step k was made at a state that depends only on rows before k. So it may guess
step k even after a rejection before k, where the paper's method discards it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.drafts.protocol import Denoise, Guess, Verified
from asd_policy.core.drafts.secant import secant_gain
from asd_policy.core.verify import inner


class PathMemory(NamedTuple):
    """The last evaluation of each step."""

    x0: Tensor  # (B, K, *E) the prediction; steps that no window has reached hold the farthest one
    y: Tensor  # (B, K, *E) the state it was made at
    gain: Tensor  # (B, K) how the prediction follows a change of that state
    evaluated: Tensor  # (B, K) bool, whether both are of the step itself, from the last round


class PathDraft:
    """The kept prediction of each step, corrected along the secant for how its state has moved since."""

    calls = 1

    def begin(self, start: Tensor, num_steps: int, warm: Tensor | None) -> PathMemory:
        zeros = torch.zeros_like(start).unsqueeze(1).repeat_interleave(num_steps, dim=1)
        return PathMemory(
            x0=zeros.clone() if warm is None else warm.clone(),
            y=zeros,
            gain=torch.zeros(zeros.shape[:2], dtype=zeros.dtype, device=zeros.device),
            evaluated=torch.zeros(zeros.shape[:2], dtype=torch.bool, device=zeros.device),
        )

    def propose(self, memory: PathMemory, x: Tensor, frontier: Tensor, denoise: Denoise) -> PathMemory:
        return memory

    def guess(self, memory: PathMemory, step: Tensor) -> Guess:
        rows = torch.arange(len(step), device=step.device).unsqueeze(1)
        gain = memory.gain[rows, step].view(step.shape + (1,) * (memory.y.ndim - 2))
        return Guess(memory.x0[rows, step] - gain * memory.y[rows, step], gain)

    def learn(self, memory: PathMemory, verified: Verified) -> PathMemory:
        num_steps, window = memory.gain.shape[1], verified.step.shape[1]
        first = verified.step[:, :1]
        position = torch.arange(num_steps, device=first.device) - first  # (B, K), of each step in the window
        rows = torch.arange(len(first), device=first.device).unsqueeze(1)
        source = position.clamp(0, window - 1)
        x0, y = verified.x0[rows, source], verified.y[rows, source]  # (B, K, *E)
        # Beyond the first rejection the network may fail where the chain never goes: such predictions are not kept.
        kept = (position >= 0) & (inner(x0, x0) + inner(y, y)).isfinite()
        evaluated = kept & (position < window)
        gain = torch.where(evaluated & memory.evaluated, secant_gain(x0 - memory.x0, y - memory.y), 0)
        per_event = (...,) + (None,) * (x0.ndim - 2)
        return PathMemory(
            x0=torch.where(kept[per_event], x0, memory.x0),
            y=torch.where(evaluated[per_event], y, memory.y),
            gain=gain,
            evaluated=evaluated,
        )

    def predictions(self, memory: PathMemory) -> Tensor:
        return memory.x0
