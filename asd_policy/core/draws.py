"""The results of a draw: samples, and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.denoiser import check_finite
from asd_policy.core.transfer import to_host


@dataclass(frozen=True)
class SampleStats:
    """The cost of a batch of B samples of K steps. All tensors are on the CPU."""

    rounds: Tensor  # (B,) int64, sequential network calls, the draft's included
    evaluations: Tensor  # (B,) int64, states that the network evaluated
    advance: Tensor  # (R, B) int64, steps that became certain in each round; 0 once a chain is finished
    acceptance: Tensor  # (K,) float32, share of chains that kept their draft at each step

    @staticmethod
    def of_rounds(since: Tensor, accepted: Tensor, evaluations: Tensor, calls: int) -> SampleStats:
        """From the final `State` of a speculative run, on the CPU, and the network calls of each round."""
        begins = since == torch.arange(since.shape[1], device="cpu")  # (B, K), whether a round began at the step
        verified_in = begins.cumsum(dim=1) - 1  # (B, K), the index of the round in which the step became certain
        loops = verified_in[:, -1] + 1  # (B,)
        counted = torch.arange(int(loops.max()), device="cpu").view(-1, 1, 1)
        return SampleStats(
            rounds=calls * loops,
            evaluations=evaluations,
            advance=(verified_in == counted).sum(dim=-1),
            acceptance=accepted.float().mean(dim=0),
        )

    @staticmethod
    def of_steps(batch_size: int, num_steps: int) -> SampleStats:
        """For a plain sampler: one step in each round, and no drafts."""
        return SampleStats(
            rounds=torch.full((batch_size,), num_steps, device="cpu"),
            evaluations=torch.full((batch_size,), num_steps, device="cpu"),
            advance=torch.ones(num_steps, batch_size, dtype=torch.int64, device="cpu"),
            acceptance=torch.zeros(num_steps, dtype=torch.float32, device="cpu"),
        )


class Draws(NamedTuple):
    """Samples, their cost, and predictions to warm-start a later draw."""

    x: Tensor  # (B, *E)
    stats: SampleStats
    predictions: Tensor | None  # (B, K, *E) the last prediction of the clean sample at each step, if kept


class Drawn(NamedTuple):
    """A draw that the device may still be computing; the host has read none of it.

    `read` waits for the device. Pass it other tensors to read, such as a chunk's actions, and they come in the same
    transfer.
    """

    x: Tensor  # (B, *E)
    record: tuple[Tensor, Tensor, Tensor] | None  # `State`'s since, accepted and evaluations; None without drafts
    calls: int  # sequential network calls: in each round, or in all if there is no record
    predictions: Tensor | None  # as in `Draws`

    def read(self, *more: Tensor) -> tuple[Draws, list[Tensor]]:
        """Read the draw and the tensors `more` in one transfer; the returned `more` are on the CPU.

        Raises:
            NumericalError: if a sample is not finite.
        """
        x, *found = to_host([self.x, *(self.record or ()), *more])
        check_finite(x)
        if self.record is None:
            return Draws(self.x, SampleStats.of_steps(len(x), self.calls), self.predictions), found
        since, accepted, evaluations, *found = found
        stats = SampleStats.of_rounds(since, accepted, evaluations, self.calls)
        return Draws(self.x, stats, self.predictions), found
