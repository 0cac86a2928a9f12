"""capture="eager" and capture="compile": a Python loop over rounds, or over steps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asd_policy.core.capture.compiled import compiled_parts, sizes_as_symbols
from asd_policy.core.denoiser import Context, Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.sequential import OnRound, Steps
from asd_policy.core.speculative import PLAIN, Chain, Parts, State, speculative_round
from asd_policy.core.window import Windows


@dataclass(frozen=True)
class PythonLoop:
    """Reads the slowest chain's frontier before each round.

    Attributes:
        parts: what computes a round on a device.
        around: a context for the loop.
        least: the fewest samples, and the fewest steps of a window, that `parts` is asked for where more are at hand.
    """

    parts: Callable[[torch.device], Parts]
    around: Callable[[], AbstractContextManager[Any]]
    least: int

    @property
    def least_window(self) -> int:
        """As `Capture.least_window`."""
        return self.least

    def rows(self, due: int, batch_size: int) -> int:
        """As `Capture.rows`."""
        return min(max(due, self.least), batch_size)

    def run_rounds(
        self, chain: Chain, draft: Draft, state: State, windows: Windows, on_round: OnRound | None = None
    ) -> State:
        """As `Capture.run_rounds`."""
        parts, slowest = self.parts(state.x.device), 0
        while slowest < len(windows):
            with self.around():
                state = speculative_round(chain, draft, state, windows[slowest], parts)
            slowest = int(state.frontier.min())
            if on_round is not None:
                on_round(state.frontier.clone(), state.x.clone())  # a compiled round changes them in place
        return state

    def run_steps(
        self, steps: Steps, denoiser: Denoiser, context: Context, tape: NoiseTape, on_round: OnRound | None = None
    ) -> Tensor:
        """As `Capture.run_steps`."""
        with self.around():
            return steps(self.parts(tape.start.device).denoise, denoiser, context, tape, on_round)


def plain_parts(device: torch.device) -> Parts:
    """Every part as it is written."""
    return PLAIN


def eager_loop() -> PythonLoop:
    """The reference."""
    return PythonLoop(plain_parts, nullcontext, least=1)


def compiled_loop() -> PythonLoop:
    """With the parts compiled. Code for single rows is compiled apart from that for any other number."""
    return PythonLoop(compiled_parts, sizes_as_symbols, least=2)
