"""The paper's draft (Hu et al. 2025, Algorithm 1, https://arxiv.org/abs/2505.03983)."""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.drafts.protocol import Denoise, Guess, Verified, constant


class FrozenDraft:
    """The prediction at the frontier, from an extra network call, for every step of the window."""

    calls = 2

    def begin(self, start: Tensor, num_steps: int, warm: Tensor | None) -> Tensor:
        return torch.zeros_like(start)

    def propose(self, memory: Tensor, x: Tensor, frontier: Tensor, denoise: Denoise) -> Tensor:
        return denoise(x.unsqueeze(1), frontier.unsqueeze(1)).squeeze(1)

    def guess(self, memory: Tensor, step: Tensor) -> Guess:
        return constant(memory, step)

    def learn(self, memory: Tensor, verified: Verified) -> Tensor:
        return memory

    def predictions(self, memory: Tensor) -> None:
        return None
