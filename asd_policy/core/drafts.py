"""Drafts: guesses of the clean sample, from which the steps ahead are speculated.

The rule that keeps a draft exact: its guess at step k may depend on the tape's start, on the tape's rows before k, and
on network outputs at states that depend only on those. Never on row k or a later one, nor on the outcome of a test at
step k or later. Whatever a draft remembers between rounds is a tensor that `begin` makes and `learn` replaces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asd_policy.errors import UnknownNameError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, W, *E), step (B, W)) -> x0 (B, W, *E): one network call on B * W states."""


class Verified(NamedTuple):
    """What a round found out, for the draft to learn from."""

    step: Tensor  # (B, W) int64, the steps of the window
    y: Tensor  # (B, W, *E) the speculated states at those steps
    x0: Tensor  # (B, W, *E) the network's predictions there
    advance: Tensor  # (B,) int64, how many steps of the window are now certain; 0 for a finished chain


class Draft(Protocol):
    """One way of guessing."""

    calls: int
    """Sequential network calls per round, the verifying one included."""

    def begin(self, start: Tensor, num_steps: int) -> Tensor:
        """start (B, *E) -> what is remembered before the first round."""
        ...

    def propose(self, memory: Tensor, x: Tensor, frontier: Tensor, denoise: Denoise) -> Tensor:
        """Look again at the frontier's state x (B, *E), at step `frontier` (B,), before a window is speculated."""
        ...

    def guess(self, memory: Tensor, step: Tensor, y: Tensor) -> Tensor:
        """step (B,), speculated state there y (B, *E) -> guess of the clean sample (B, *E)."""
        ...

    def learn(self, memory: Tensor, verified: Verified) -> Tensor:
        """What is remembered for the next round."""
        ...


class Frozen:
    """The paper's draft: one extra call at the frontier, its prediction frozen for the whole window.

    Hu et al. 2025, Algorithm 1 (https://arxiv.org/abs/2505.03983).
    """

    calls = 2

    def begin(self, start: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(start)

    def propose(self, memory: Tensor, x: Tensor, frontier: Tensor, denoise: Denoise) -> Tensor:
        return denoise(x.unsqueeze(1), frontier.unsqueeze(1)).squeeze(1)

    def guess(self, memory: Tensor, step: Tensor, y: Tensor) -> Tensor:
        return memory

    def learn(self, memory: Tensor, verified: Verified) -> Tensor:
        return memory


class Reuse:
    """The last verified prediction, frozen for the whole window: no extra call.

    The first round knows no prediction yet and guesses zero. The noisiest steps hardly depend on the guess, so most of
    them pass all the same, and no call is spent on waiting.
    """

    calls = 1

    def begin(self, start: Tensor, num_steps: int) -> Tensor:
        return torch.zeros_like(start)

    def propose(self, memory: Tensor, x: Tensor, frontier: Tensor, denoise: Denoise) -> Tensor:
        return memory

    def guess(self, memory: Tensor, step: Tensor, y: Tensor) -> Tensor:
        return memory

    def learn(self, memory: Tensor, verified: Verified) -> Tensor:
        rows = torch.arange(len(memory), device=memory.device)
        return verified.x0[rows, (verified.advance - 1).clamp(min=0)]


DRAFTS: dict[str, type[Draft]] = {"frozen": Frozen, "reuse": Reuse}


def make_draft(name: str) -> Draft:
    """The draft called `name`. Raises UnknownNameError, which lists them all."""
    if name not in DRAFTS:
        raise UnknownNameError("draft", name, DRAFTS)
    return DRAFTS[name]()
