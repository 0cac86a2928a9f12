"""The `Draft` protocol: guesses of the clean sample, from which a round speculates the steps ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, W, *E), step (B, W)) -> x0 (B, W, *E): one network call on B * W states."""

Memory = Any
"""A draft's memory between rounds: a tensor, or a NamedTuple of tensors, of static shapes."""


class Guess(NamedTuple):
    """Guesses of the clean sample along a window, affine in the state y of each step: offset + gain y.

    The roll-out needs nothing else of a draft, so one kernel serves every draft.
    """

    offset: Tensor  # (B, W, *E)
    gain: Tensor  # (B, W, *E), or of shape (B, W, 1, ..., 1)


def constant(x0: Tensor, step: Tensor) -> Guess:
    """The guess x0 (B, *E) at every step (B, W), independent of the state."""
    window = x0.unsqueeze(1).expand(*step.shape, *x0.shape[1:])
    return Guess(window, torch.zeros(step.shape + (1,) * (x0.ndim - 1), dtype=x0.dtype, device=x0.device))


class Verified(NamedTuple):
    """A verified round, from which the draft updates its memory."""

    step: Tensor  # (B, W) int64, the steps of the window; the last step repeats where the window runs past it
    y: Tensor  # (B, W, *E) the speculated states at those steps
    x0: Tensor  # (B, W, *E) the network's predictions there
    advance: Tensor  # (B,) int64, the steps of the window that became certain; 0 for a finished chain


class Draft(Protocol):
    """Guesses the clean sample at the steps of a window.

    The rule that keeps every draft exact: the guess at step k may depend on the tape's start, on the tape's rows
    before k, and on network outputs at states that depend only on those. It must not depend on row k or a later one,
    nor on the outcome of the test at step k or a later one.
    """

    calls: int
    """Sequential network calls per round, the verifying one included."""

    def begin(self, start: Tensor, num_steps: int, warm: Tensor | None) -> Memory:
        """The memory before the first round.

        Args:
            start: (B, *E) the tape's start.
            num_steps: K.
            warm: (B, K, *E) a guess for each step, made without this tape; or None.
        """
        ...

    def propose(self, memory: Memory, x: Tensor, frontier: Tensor, denoise: Denoise) -> Memory:
        """Update the memory before a window is speculated; x (B, *E) is the state at step `frontier` (B,).

        The frontier of a finished chain is K; `denoise` then predicts at the last step.
        """
        ...

    def guess(self, memory: Memory, step: Tensor) -> Guess:
        """The guesses at the steps of a window, `step` (B, W) int64.

        The caller clips them as the denoiser clips its predictions.
        """
        ...

    def learn(self, memory: Memory, verified: Verified) -> Memory:
        """The memory for the next round: new tensors, or unchanged tensors of `memory`, never views of them.

        A capture copies them into the tensors of `memory`, so shapes and types must stay the same.
        """
        ...

    def predictions(self, memory: Memory) -> Tensor | None:
        """(B, K, *E) the last prediction at each step, to warm-start a later draw; None if the draft keeps none."""
        ...
