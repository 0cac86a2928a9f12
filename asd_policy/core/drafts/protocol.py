"""What a draft is: a way of guessing the clean sample, from which the steps ahead are speculated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, W, *E), step (B, W)) -> x0 (B, W, *E): one network call on B * W states."""

Memory = Any
"""What a draft remembers between rounds: a tensor, or a NamedTuple of tensors, of static shapes."""


class Guess(NamedTuple):
    """Guesses of the clean sample along a window, each affine in the state y at its step: offset + gain y.

    That is all a roll-out needs to know of a draft, so one kernel serves every draft.
    """

    offset: Tensor  # (B, W, *E)
    gain: Tensor  # (B, W, *E), or of shape (B, W, 1, ..., 1)


def constant(x0: Tensor, step: Tensor) -> Guess:
    """The same guess x0 (B, *E) at every step (B, W), whatever the state."""
    window = x0.unsqueeze(1).expand(*step.shape, *x0.shape[1:])
    return Guess(window, torch.zeros(step.shape + (1,) * (x0.ndim - 1), dtype=x0.dtype, device=x0.device))


class Verified(NamedTuple):
    """What a round found out, for the draft to learn from."""

    step: Tensor  # (B, W) int64, the steps of the window; the last step repeats where the window runs past it
    y: Tensor  # (B, W, *E) the speculated states at those steps
    x0: Tensor  # (B, W, *E) the network's predictions there
    advance: Tensor  # (B,) int64, how many steps of the window are now certain; 0 for a finished chain


class Draft(Protocol):
    """One way of guessing.

    The rule that keeps it exact: its guess at step k may depend on the tape's start, on the tape's rows before k, and
    on network outputs at states that depend only on those. Never on row k or a later one, nor on the outcome of a test
    at step k or later.
    """

    calls: int
    """Sequential network calls per round, the verifying one included."""

    def begin(self, start: Tensor, num_steps: int, warm: Tensor | None) -> Memory:
        """What is remembered before the first round.

        Args:
            start: (B, *E) the tape's.
            warm: (B, K, *E) or None, a guess for each step that was made without this tape.
        """
        ...

    def propose(self, memory: Memory, x: Tensor, frontier: Tensor, denoise: Denoise) -> Memory:
        """Look again at the frontier's state x (B, *E), at step `frontier` (B,), before a window is speculated.

        The frontier of a finished chain is K; `denoise` then answers for the last step.
        """
        ...

    def guess(self, memory: Memory, step: Tensor) -> Guess:
        """The guesses at the steps of a window, (B, W) int64.

        The caller clips them as the denoiser clips its predictions.
        """
        ...

    def learn(self, memory: Memory, verified: Verified) -> Memory:
        """What is remembered for the next round: new tensors, or tensors of `memory` as they are, but no views of them.

        A capture writes them over the tensors of `memory`, shape by shape and type by type.
        """
        ...

    def predictions(self, memory: Memory) -> Tensor | None:
        """(B, K, *E) the network's last prediction at each step, for a later sample to start from; None if not kept."""
        ...
