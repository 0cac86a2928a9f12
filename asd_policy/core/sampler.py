"""AsdSampler: exact draws of a DDPM in a fraction of its sequential network calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from asd_policy.core.capture import make_loop
from asd_policy.core.denoiser import Denoiser, check_condition, check_finite, device_of
from asd_policy.core.drafts import make_draft
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.core.speculative import Chain, State, begin
from asd_policy.errors import ConfigError


@dataclass(frozen=True)
class SampleStats:
    """What a batch of B samples of K steps cost, on the CPU."""

    rounds: Tensor  # (B,) int64, sequential network calls, every one counted
    evaluations: Tensor  # (B,) int64, states that the network was asked about
    advance: Tensor  # (R, B) int64, steps that became certain in each round of the loop; 0 once a chain is finished
    acceptance: Tensor  # (K,) float32, the share of chains that kept their draft at each step

    @staticmethod
    def of(state: State, draft: Draft) -> SampleStats:
        """Read a finished run."""
        verified_in, accepted = state.verified_in.cpu(), state.accepted.cpu()
        loops = verified_in[:, -1] + 1  # (B,)
        counted = torch.arange(int(loops.max())).view(-1, 1, 1)
        return SampleStats(
            rounds=draft.calls * loops,
            evaluations=state.evaluations.cpu(),
            advance=(verified_in == counted).sum(dim=-1),
            acceptance=accepted.float().mean(dim=0),
        )


class Draws(NamedTuple):
    """Samples, what they cost, and what a later draw may start from."""

    x: Tensor  # (B, *E)
    stats: SampleStats
    predictions: Tensor | None  # (B, K, *E) the last prediction of the clean sample at each step, if the draft keeps it


class AsdSampler:
    """Draws exactly from the law of `sample_ddpm`, for any draft and window.

    Args:
        denoiser: (x (N, *E), t (N,) int64 training timesteps, cond (N, ...) | None) -> clean sample (N, *E).
        schedule: the chain's coefficients.
        event_shape: E, the shape of one sample.
        draft: "frozen" (the paper's), "reuse" or "path"; see docs/algorithm.md.
        window: how many steps a round speculates (the paper's theta); None for all K (its ASD-infinity).
        capture: how the loop of rounds is run: "eager" (a Python loop) or "compile" (one compiled program).

    Raises:
        ConfigError: on a window below 1, or a name that does not exist (the message lists those that do).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        event_shape: Sequence[int],
        draft: str = "path",
        window: int | None = 24,
        capture: str = "eager",
    ):
        if window is not None and window < 1:
            raise ConfigError(f"window is {window}; expected at least 1, or None to speculate all steps at once.")
        self.denoiser = denoiser
        self.schedule = schedule
        self.event_shape = tuple(event_shape)
        self.draft = make_draft(draft)
        self.window = schedule.num_steps if window is None else min(window, schedule.num_steps)
        self._loop = make_loop(capture)

    def __call__(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Generator | Sequence[Generator] | None = None,
    ) -> tuple[Tensor, SampleStats]:
        """Draw `batch_size` samples.

        Args:
            cond: (B, ...) or None, handed to the denoiser.
            generator: one for the batch or one per sample; the tape drawn is the one `sample_ddpm` draws.

        Returns:
            x (B, *event_shape), float32, on the denoiser's device; and what it cost.

        Raises:
            ConfigError: on a batch, condition or denoiser output whose shape does not fit.
            NumericalError: if the network returned NaN or infinity.
        """
        draws = self.draw(batch_size, cond, generator)
        return draws.x, draws.stats

    @torch.inference_mode()
    def draw(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        warm: Tensor | None = None,
    ) -> Draws:
        """Draw as a call does, beginning with guesses from an earlier, related draw.

        Args:
            warm: (B, K, *event_shape) or None, a guess of the clean sample for each step: the predictions of an earlier
                draw, moved to where this sample is expected. However wrong, it changes the cost alone, never the law.

        Returns and raises as a call does.
        """
        check_condition(cond, batch_size)
        device, num_steps = device_of(self.denoiser), self.schedule.num_steps
        expected = (batch_size, num_steps, *self.event_shape)
        if warm is not None and warm.shape != expected:
            raise ConfigError(f"warm has shape {tuple(warm.shape)}; expected {expected}.")
        tape = NoiseTape.draw(batch_size, num_steps, self.event_shape, generator, device)
        a, b, s = (c.to(device, torch.float32) for c in (self.schedule.a, self.schedule.b, self.schedule.s))
        clip = getattr(self.denoiser, "clip", None)
        chain = Chain(self.denoiser, cond, tape, a, b, s, self.schedule.timesteps.to(device), clip)
        state = self._loop(chain, self.draft, begin(chain, self.draft, warm), self.window)
        stats = SampleStats.of(state, self.draft)
        return Draws(check_finite(state.x), stats, self.draft.predictions(state.memory))
