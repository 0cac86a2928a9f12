"""What a capture is: a way of running a sampler's loop."""

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
from asd_policy.core.speculative import Chain, Parts, State
from asd_policy.core.window import WindowTable

PartsOn = Callable[[torch.device], Parts]
"""device -> the parts of a round that are run there."""


class Capture(Protocol):
    """One way of running the loops of speculative and of plain samplers."""

    @property
    def least_window(self) -> int | None:
        """The shortest that a window may be cut to where fewer steps are left; None if no window is ever cut."""
        ...

    @property
    def can_watch(self) -> bool:
        """Whether `on_round` can be called after each round."""
        ...

    @property
    def keeps_graphs(self) -> bool:
        """Whether this object keeps recorded graphs, so that a sampler of the same computation should be kept too."""
        ...

    def compiles(self, device: torch.device) -> bool:
        """Whether the network's code is compiled or recorded on this device.

        The first draw then takes long, and what a call of the network does beside its code, as hooks do, is lost.
        """
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw where `due` of a batch are wanted; what is drawn beyond that is thrown away."""
        ...

    def with_parts(self, change: Callable[[Parts], Parts]) -> Capture:
        """This way of running, with the parts of a round changed; it shares nothing that was compiled or recorded."""
        ...

    def run_rounds(
        self, chain: Chain, draft: Draft, state: State, windows: WindowTable, on_round: OnRound | None = None
    ) -> State:
        """Run rounds until every chain of the batch is finished; all share the window of the slowest.

        The tensors returned are the caller's to keep.
        """
        ...

    def run_steps(
        self, steps: Steps, denoiser: Denoiser, context: Context, tape: NoiseTape, on_round: OnRound | None = None
    ) -> Tensor:
        """Run a plain sampler's steps: x (B, *E), the caller's to keep."""
        ...


@dataclass(frozen=True)
class ChangedParts:
    """The parts of a round on a device, changed. A class, so that a sampler can be pickled with it."""

    parts_on: PartsOn
    change: Callable[[Parts], Parts]

    def __call__(self, device: torch.device) -> Parts:
        return self.change(self.parts_on(device))
