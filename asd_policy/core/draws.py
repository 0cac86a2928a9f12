"""What a draw returns: samples, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.denoiser import check_finite
from asd_policy.core.transfer import to_host


@dataclass(frozen=True)
class SampleStats:
    """What a batch of B samples of K steps cost, on the CPU."""

    rounds: Tensor  # (B,) int64, sequential network calls, every one counted
    evaluations: Tensor  # (B,) int64, states that the network was asked about
    advance: Tensor  # (R, B) int64, steps that became certain in each round of the loop; 0 once a chain is finished
    acceptance: Tensor  # (K,) float32, the share of chains that kept their draft at each step

    @staticmethod
    def of_rounds(since: Tensor, accepted: Tensor, evaluations: Tensor, calls: int) -> SampleStats:
        """Of speculation, from the `State` of a finished run on the CPU and the draft's calls per round."""
        begins = since == torch.arange(since.shape[1], device="cpu")  # (B, K), the steps at which a round began
        verified_in = begins.cumsum(dim=1) - 1  # (B, K), the round in which each step became certain
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
        """Of a plain sampler: one step a round, and no draft to keep."""
        return SampleStats(
            rounds=torch.full((batch_size,), num_steps, device="cpu"),
            evaluations=torch.full((batch_size,), num_steps, device="cpu"),
            advance=torch.ones(num_steps, batch_size, dtype=torch.int64, device="cpu"),
            acceptance=torch.zeros(num_steps, dtype=torch.float32, device="cpu"),
        )


class Draws(NamedTuple):
    """Samples, what they cost, and what a later draw may start from."""

    x: Tensor  # (B, *E)
    stats: SampleStats
    predictions: Tensor | None  # (B, K, *E) the last prediction of the clean sample at each step, if the draft keeps it


class Drawn(NamedTuple):
    """A draw that the device may still be working on: nothing of it has been read.

    `read` waits for it. Whoever wants more of the device, such as the actions that a chunk stands for, has it read in
    the same transfer.
    """

    x: Tensor  # (B, *E)
    record: tuple[Tensor, Tensor, Tensor] | None  # `State`'s since, accepted and evaluations; None without drafts
    calls: int  # sequential network calls: of each round, or in all where there is no record
    predictions: Tensor | None  # as in `Draws`

    def read(self, *more: Tensor) -> tuple[Draws, list[Tensor]]:
        """The draw and `more` tensors, read in one transfer; `more` on the CPU.

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
