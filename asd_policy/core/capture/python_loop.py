"""capture="eager" and capture="compile": a Python loop over rounds, or over steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from asd_policy.core.capture.compiled import compiled_parts, sizes_as_symbols
from asd_policy.core.capture.protocol import ChangedParts, PartsOn
from asd_policy.core.denoiser import Context, Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.sequential import OnRound, Steps
from asd_policy.core.speculative import PLAIN, Batch, Parts, State, speculative_round
from asd_policy.core.window import WindowTable


@dataclass(frozen=True)
class PythonLoop:
    """A Python loop that reads the slowest chain's frontier before each round.

    Attributes:
        parts_on: device -> the parts of a round on it.
        around: makes a context manager for the loop.
        compiled: whether the parts are compiled.
        least_window: as `Capture.least_window`; also the smallest batch, if that many samples are available.
    """

    parts_on: PartsOn
    around: Callable[[], AbstractContextManager[Any]]
    compiled: bool
    least_window: int

    can_watch: ClassVar[bool] = True
    keeps_graphs: ClassVar[bool] = False  # torch keeps the compiled code

    def compiles(self, device: torch.device) -> bool:
        """As `Capture.compiles`."""
        return self.compiled

    def rows(self, due: int, batch_size: int) -> int:
        """As `Capture.rows`."""
        return min(max(due, self.least_window), batch_size)

    def with_parts(self, change: Callable[[Parts], Parts]) -> PythonLoop:
        """As `Capture.with_parts`."""
        return replace(self, parts_on=ChangedParts(self.parts_on, change))

    def run_rounds(
        self, batch: Batch, draft: Draft, state: State, windows: WindowTable, on_round: OnRound | None = None
    ) -> State:
        """As `Capture.run_rounds`."""
        parts, slowest = self.parts_on(state.x.device), 0
        while slowest < len(windows):
            with self.around():
                state = speculative_round(batch, draft, state, windows[slowest], parts)
            slowest = int(state.frontier.min())
            if on_round is not None:
                on_round(state.frontier.clone(), state.x.clone())  # a compiled round updates them in place
        return state

    def run_steps(
        self, steps: Steps, denoiser: Denoiser, context: Context, tape: NoiseTape, on_round: OnRound | None = None
    ) -> Tensor:
        """As `Capture.run_steps`."""
        with self.around():
            return steps(self.parts_on(tape.start.device).denoise, denoiser, context, tape, on_round)


def plain_parts(device: torch.device) -> Parts:
    """The parts of a round in plain torch."""
    return PLAIN


def eager_loop() -> PythonLoop:
    """The reference capture: plain torch."""
    return PythonLoop(plain_parts, nullcontext, compiled=False, least_window=1)


def compiled_loop() -> PythonLoop:
    """Compiled parts. torch.compile specialises a size of 1, so batches and windows of 1 are avoided."""
    return PythonLoop(compiled_parts, sizes_as_symbols, compiled=True, least_window=2)
