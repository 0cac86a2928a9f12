"""The steps of the plain samplers: one network call each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from asd_policy.core.checks import is_number
from asd_policy.core.denoiser import AffineDenoiser, Context, Denoiser, Evaluate, clipped
from asd_policy.core.noise import NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError

OnRound = Callable[[Tensor, Tensor], None]
"""Told after each round how far the chains are: the frontier (B,) int64, the steps that are certain, and x (B, *E)."""


class Steps(Protocol):
    """All steps of a plain sampler, without a look at a value: a capture may record them."""

    num_steps: int

    @property
    def timesteps(self) -> Tensor:
        """(K,) int64, the training timestep of each step."""
        ...

    def __call__(
        self,
        network: Evaluate,
        denoiser: Denoiser,
        context: Context,
        tape: NoiseTape,
        on_round: OnRound | None = None,
    ) -> Tensor:
        """x (B, *E) at the end of the tape's chains; `network` is `denoise`, or a capture's."""
        ...


class DdpmSteps:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2)."""

    def __init__(self, schedule: Schedule):
        self.num_steps, self.timesteps = schedule.num_steps, schedule.timesteps
        self._coefficients = list(zip(schedule.a.tolist(), schedule.b.tolist(), schedule.s.tolist(), strict=True))

    def __call__(
        self,
        network: Evaluate,
        denoiser: Denoiser,
        context: Context,
        tape: NoiseTape,
        on_round: OnRound | None = None,
    ) -> Tensor:
        """As `Steps`."""
        step, row = _steps_and_rows(self.num_steps, len(tape.start), tape.start.device)
        x = tape.start
        for k, (a, b, s) in enumerate(self._coefficients):
            x0 = network(denoiser, x, step[k], row, context)
            x = a * x + b * x0 + s * tape.xi[:, k]
            if on_round is not None:
                on_round(step[k] + 1, x)
        return x


class DdimSteps:
    """DDIM (Song et al. 2021, eq. 12); arguments as `sample_ddim`."""

    def __init__(self, schedule: Schedule, num_steps: int, eta: float, clip: float | None, set_alpha_to_one: bool):
        strided = schedule.with_num_steps(num_steps)
        self.num_steps, self.timesteps, self._clip = strided.num_steps, strided.timesteps, clip
        abar, abar_next = strided.abar, _ddim_abar_next(strided, set_alpha_to_one)
        sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
        direction = (1 - abar_next - sigma**2).clamp(min=0).sqrt()
        columns = abar.sqrt(), (1 - abar).sqrt(), abar_next.sqrt(), direction, sigma
        self._coefficients = list(zip(*(column.tolist() for column in columns), strict=True))

    def __call__(
        self,
        network: Evaluate,
        denoiser: Denoiser,
        context: Context,
        tape: NoiseTape,
        on_round: OnRound | None = None,
    ) -> Tensor:
        """As `Steps`."""
        step, row = _steps_and_rows(self.num_steps, len(tape.start), tape.start.device)
        x = tape.start
        for k, (signal, noise, next_signal, direction, sigma) in enumerate(self._coefficients):
            x0 = network(denoiser, x, step[k], row, context)
            epsilon = (x - signal * x0) / noise
            x = next_signal * clipped(x0, self._clip) + direction * epsilon + sigma * tape.xi[:, k]
            if on_round is not None:
                on_round(step[k] + 1, x)
        return x


def check_eta(eta: float) -> None:
    """Raise ConfigError unless DDIM's `eta` is a finite number of at least 0."""
    if not is_number(eta) or not 0 <= eta < math.inf:
        raise ConfigError(f"eta is {eta!r}; expected a number of at least 0.")


def _ddim_abar_next(strided: Schedule, set_alpha_to_one: bool) -> Tensor:
    """(K,) the signal's share of variance after each step: DDIM goes back by T // K timesteps, whatever the spacing."""
    abar = strided.alphas_cumprod
    following = strided.timesteps - len(abar) // strided.num_steps
    final = abar.new_ones(()) if set_alpha_to_one else abar[0]
    return torch.where(following >= 0, abar[following.clamp(min=0)], final)


def without_clip(denoiser: Denoiser) -> tuple[Denoiser, float | None]:
    """The denoiser without its clip, and the clip."""
    clip = getattr(denoiser, "clip", None)
    if clip is None:
        return denoiser, None
    if not isinstance(denoiser, AffineDenoiser):
        raise ConfigError(
            f"use_clipped_model_output=False needs predictions before they are clipped, which a "
            f"{type(denoiser).__name__} does not tell; take an EpsilonDenoiser, VDenoiser or SampleDenoiser."
        )
    return denoiser.without_clip(), clip


def _steps_and_rows(num_steps: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """step (K, B), row k full of k, and row (B,), 0 to B - 1: made beforehand, so that no step copies from the host."""
    step = torch.arange(num_steps, device=device).unsqueeze(1).expand(num_steps, batch_size)
    return step, torch.arange(batch_size, device=device)
