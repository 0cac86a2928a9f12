"""What a capture is: a way of running a sampler's loop."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from asd_policy.core.denoiser import Context, Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.sequential import OnRound, Steps
from asd_policy.core.speculative import Chain, State
from asd_policy.core.window import Windows


@runtime_checkable
class Capture(Protocol):
    """One way of running the loops of speculative and of plain samplers."""

    @property
    def least_window(self) -> int | None:
        """The shortest that a window may be cut to where fewer steps are left; None if no window is ever cut."""
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw where `due` of a batch are wanted; what is drawn beyond that is thrown away."""
        ...

    def run_rounds(
        self, chain: Chain, draft: Draft, state: State, windows: Windows, on_round: OnRound | None = None
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
