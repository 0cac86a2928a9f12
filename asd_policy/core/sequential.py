"""The steps of the plain samplers, one network call each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from asd_policy.core.checks import is_real
from asd_policy.core.denoiser import AffineDenoiser, Context, Denoiser, Evaluate, clipped
from asd_policy.core.noise import NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError

OnRound = Callable[[Tensor, Tensor], None]
"""Called after each round with the frontier (B,) int64, the number of certain steps of each chain, and x (B, *E)."""


Step = Callable[[tuple[float, ...], Tensor, Tensor, Tensor], Tensor]
"""(a step's coefficients, x (B, *E), prediction of the clean sample (B, *E), noise (B, *E)) -> the next x (B, *E)."""


class Steps:
    """All steps of a plain sampler, one network call each. No step reads a value on the host: a capture can record it.

    Args:
        timesteps: (K,) int64, the training timestep of each step.
        coefficients: K tuples, the coefficients of each step.
        step: the update rule of a step.
    """

    def __init__(self, timesteps: Tensor, coefficients: Sequence[tuple[float, ...]], step: Step):
        self.num_steps, self.timesteps = len(timesteps), timesteps
        self._coefficients, self._step = coefficients, step

    def __call__(
        self,
        network: Evaluate,
        denoiser: Denoiser,
        context: Context,
        tape: NoiseTape,
        on_round: OnRound | None = None,
    ) -> Tensor:
        """x (B, *E) at the end of the tape's chains; `network` is `denoise` or a capture's version of it."""
        step, row = _steps_and_rows(self.num_steps, len(tape.start), tape.start.device)
        x = tape.start
        for k, coefficients in enumerate(self._coefficients):
            x0 = network(denoiser, x, step[k], row, context)
            x = self._step(coefficients, x, x0, tape.xi[:, k])
            if on_round is not None:
                on_round(step[k] + 1, x)
        return x


def ddpm_steps(schedule: Schedule) -> Steps:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2)."""
    return Steps(schedule.timesteps, _rows(schedule.a, schedule.b, schedule.s), _ddpm_step)


def _ddpm_step(coefficients: tuple[float, ...], x: Tensor, x0: Tensor, xi: Tensor) -> Tensor:
    a, b, s = coefficients
    return a * x + b * x0 + s * xi


def ddim_steps(schedule: Schedule, num_steps: int, eta: float, clip: float | None, set_alpha_to_one: bool) -> Steps:
    """DDIM (Song et al. 2021, eq. 12). Arguments as `sample_ddim`; `clip` bounds unclipped predictions."""
    strided = schedule.with_num_steps(num_steps)
    abar, abar_next = strided.abar, _ddim_abar_next(strided, set_alpha_to_one)
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
    direction = (1 - abar_next - sigma**2).clamp(min=0).sqrt()
    coefficients = _rows(abar.sqrt(), (1 - abar).sqrt(), abar_next.sqrt(), direction, sigma)
    return Steps(strided.timesteps, coefficients, partial(_ddim_step, clip))


def _ddim_step(clip: float | None, coefficients: tuple[float, ...], x: Tensor, x0: Tensor, xi: Tensor) -> Tensor:
    signal, noise, next_signal, direction, sigma = coefficients
    epsilon = (x - signal * x0) / noise
    return next_signal * clipped(x0, clip) + direction * epsilon + sigma * xi


def _rows(*columns: Tensor) -> list[tuple[float, ...]]:
    """Transpose columns (K,) into K rows of numbers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))


def check_eta(eta: float) -> None:
    """Raise ConfigError unless DDIM's `eta` is a finite number of at least 0."""
    if not is_real(eta) or not 0 <= eta < math.inf:
        raise ConfigError(f"eta is {eta!r}; expected a number of at least 0.")


def _ddim_abar_next(strided: Schedule, set_alpha_to_one: bool) -> Tensor:
    """(K,) the signal's share of variance after each step. DDIM steps by T // K timesteps, whatever the spacing."""
    abar = strided.alphas_cumprod
    following = strided.timesteps - len(abar) // strided.num_steps
    final = abar.new_ones(()) if set_alpha_to_one else abar[0]
    return torch.where(following >= 0, abar[following.clamp(min=0)], final)


def without_clip(denoiser: Denoiser) -> tuple[Denoiser, float | None]:
    """The denoiser without its clip, and the clip. Raises ConfigError if it has a clip that cannot be removed."""
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
    """step (K, B), row k full of k, and row (B,), 0 to B - 1. Made in advance, so that no step copies from the host."""
    step = torch.arange(num_steps, device=device).unsqueeze(1).expand(num_steps, batch_size)
    return step, torch.arange(batch_size, device=device)
