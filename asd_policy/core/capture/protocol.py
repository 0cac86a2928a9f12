"""The `Capture` protocol: how a sampler's loop is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from asd_policy.core.denoiser import Context, Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.sequential import OnRound, Steps
from asd_policy.core.speculative import Batch, Parts, State
from asd_policy.core.window import WindowTable

PartsOn = Callable[[torch.device], Parts]
"""device -> the parts of a round on that device."""


class Capture(Protocol):
    """Runs the loops of speculative and of plain samplers."""

    @property
    def least_window(self) -> int | None:
        """The shortest window to shorten to when fewer steps are left; None if windows are never shortened."""
        ...

    @property
    def can_watch(self) -> bool:
        """Whether `on_round` can be called after each round."""
        ...

    @property
    def keeps_graphs(self) -> bool:
        """Whether this object keeps recorded graphs. Samplers with the same computation should then be reused."""
        ...

    def compiles(self, device: torch.device) -> bool:
        """Whether the network's code is compiled or recorded on this device.

        The first draw is then slow, and side effects of a network call, such as hooks, are lost.
        """
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw when `due` of a batch are wanted; the caller discards the surplus."""
        ...

    def with_parts(self, change: Callable[[Parts], Parts]) -> Capture:
        """A capture of the same kind with the parts of a round changed. It shares no compiled code or graph."""
        ...

    def run_rounds(
        self, batch: Batch, draft: Draft, state: State, windows: WindowTable, on_round: OnRound | None = None
    ) -> State:
        """Run rounds until every chain of the batch is finished. All chains share the window of the slowest one.

        The caller owns the returned tensors.
        """
        ...

    def run_steps(
        self, steps: Steps, denoiser: Denoiser, context: Context, tape: NoiseTape, on_round: OnRound | None = None
    ) -> Tensor:
        """Run a plain sampler's steps and return x (B, *E). The caller owns it."""
        ...


@dataclass(frozen=True)
class ChangedParts:
    """Changed parts of a round for each device. A class rather than a closure, so that samplers can be pickled."""

    parts_on: PartsOn
    change: Callable[[Parts], Parts]

    def __call__(self, device: torch.device) -> Parts:
        return self.change(self.parts_on(device))
