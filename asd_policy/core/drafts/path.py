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
from asd_policy.core.drafts.secant import pooled_gain, secant_evidence
from asd_policy.core.verify import inner


class PathMemory(NamedTuple):
    """The last evaluation of each step."""

    x0: Tensor  # (B, K, *E) the prediction; steps that no window has reached hold the farthest one
    y: Tensor  # (B, K, *E) the state it was made at
    numerator: Tensor  # (B, K, *E) how the prediction follows its state: `secant_evidence`; 0 before two evaluations
    denominator: Tensor  # (B, K, *E)
    evaluated: Tensor  # (B, K) bool, whether x0 and y are of the step itself, from the last round


class PathDraft:
    """The kept prediction of each step, corrected for how its state has moved: X_k + g (y - y_k).

    The gain g, one for each element of the event, is pooled over the steps up to k that were evaluated twice. A chain
    keeps four tensors (K, *E) of float32: 0.17 MiB for K = 100 and a chunk of 16 x 7.
    """

    calls = 1

    def begin(self, start: Tensor, num_steps: int, warm: Tensor | None) -> PathMemory:
        zeros = torch.zeros_like(start).unsqueeze(1).repeat_interleave(num_steps, dim=1)
        return PathMemory(
            x0=zeros.clone() if warm is None else warm.clone(),
            y=zeros,
            numerator=zeros.clone(),  # a capture changes each in place
            denominator=zeros.clone(),
            evaluated=torch.zeros(zeros.shape[:2], dtype=torch.bool, device=start.device),
        )

    def propose(self, memory: PathMemory, x: Tensor, frontier: Tensor, denoise: Denoise) -> PathMemory:
        return memory

    def guess(self, memory: PathMemory, step: Tensor) -> Guess:
        rows = torch.arange(len(step), device=step.device).unsqueeze(1)
        evaluated = memory.evaluated[rows, step].view(step.shape + (1,) * (memory.y.ndim - 2))
        gain = torch.where(evaluated, pooled_gain(memory.numerator, memory.denominator, step), 0)
        return Guess(memory.x0[rows, step] - gain * memory.y[rows, step], gain)

    def learn(self, memory: PathMemory, verified: Verified) -> PathMemory:
        step, y, x0, _ = verified
        num_steps, window = memory.evaluated.shape[1], step.shape[1]
        per_event = (...,) + (None,) * (x0.ndim - 2)
        rows = torch.arange(len(step), device=step.device).unsqueeze(1)
        # Beyond the first rejection the network may fail where the chain never goes: such predictions are not kept.
        finite = (inner(x0, x0) + inner(y, y)).isfinite()  # (B, W)
        numerator, denominator = secant_evidence(x0 - memory.x0[rows, step], y - memory.y[rows, step])

        position = torch.arange(num_steps, device=step.device) - step[:, :1]  # (B, K), of each step in the window
        source = position.clamp(0, window - 1)
        kept = (position >= 0) & finite[rows, source]
        evaluated = kept & (position < window)
        twice = (evaluated & memory.evaluated)[per_event]
        return PathMemory(
            x0=torch.where(kept[per_event], x0[rows, source], memory.x0),
            y=torch.where(evaluated[per_event], y[rows, source], memory.y),
            numerator=torch.where(twice, numerator[rows, source], memory.numerator),
            denominator=torch.where(twice, denominator[rows, source], memory.denominator),
            evaluated=evaluated,
        )

    def predictions(self, memory: PathMemory) -> Tensor:
        return memory.x0
