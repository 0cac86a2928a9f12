"""The plain samplers: one network call per step. `sample_ddpm` is the law that everything else is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from asd_policy.core.denoiser import Denoiser, check_condition, check_finite, denoise, device_of, prepare
from asd_policy.core.noise import NoiseTape
from asd_policy.core.schedule import Schedule

OnRound = Callable[[Tensor, Tensor], None]
"""Told after each round how far the chains are: the frontier (B,) int64, the steps that are certain, and x (B, *E)."""


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    schedule: Schedule,
    event_shape: Sequence[int],
    batch_size: int = 1,
    cond: Tensor | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    on_round: OnRound | None = None,
) -> Tensor:
    """Ancestral sampling in K steps (Ho et al. 2020, Algorithm 2).

    Args:
        cond: (B, ...) or None, handed to the denoiser.
        generator: one for the batch or one per sample; the tape drawn is the one `AsdSampler` draws.
        on_round: called after each step.

    Returns:
        x (B, *event_shape), float32, on the denoiser's device.

    Raises:
        ConfigError: on a batch, condition or denoiser output whose shape does not fit.
        NumericalError: if the network returned NaN or infinity.
    """
    check_condition(cond, batch_size)
    device = device_of(denoiser)
    tape = NoiseTape.draw(batch_size, schedule.num_steps, event_shape, generator, device)
    a, b, s = schedule.a.tolist(), schedule.b.tolist(), schedule.s.tolist()
    context = prepare(denoiser, schedule.timesteps.to(device), cond)
    step, row = _steps_and_rows(schedule.num_steps, batch_size, device)
    x = tape.start
    for k in range(schedule.num_steps):
        x0 = denoise(denoiser, x, step[k], row, context)
        x = a[k] * x + b[k] * x0 + s[k] * tape.xi[:, k]
        if on_round is not None:
            on_round(step[k] + 1, x)
    return check_finite(x)


@torch.no_grad()
def sample_ddim(
    denoiser: Denoiser,
    schedule: Schedule,
    event_shape: Sequence[int],
    batch_size: int = 1,
    cond: Tensor | None = None,
    generator: Generator | Sequence[Generator] | None = None,
    num_steps: int = 10,
    eta: float = 0.0,
    on_round: OnRound | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12, https://arxiv.org/abs/2010.02502): fewer steps, but another distribution.

    The noise direction is recomputed from the clipped prediction (diffusers' `use_clipped_model_output=True`).

    Args:
        num_steps: steps taken out of the schedule's training timesteps.
        eta: 0 is deterministic given the start; 1 adds the noise of DDPM's small variance.

    Returns and raises as `sample_ddpm`.
    """
    check_condition(cond, batch_size)
    device = device_of(denoiser)
    strided = schedule.with_num_steps(num_steps)
    tape = NoiseTape.draw(batch_size, num_steps, event_shape, generator, device)
    abar, abar_next = strided.abar, strided.abar_next
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
    direction = (1 - abar_next - sigma**2).clamp(min=0).sqrt()
    context = prepare(denoiser, strided.timesteps.to(device), cond)
    step, row = _steps_and_rows(num_steps, batch_size, device)
    x = tape.start
    for k in range(num_steps):
        x0 = denoise(denoiser, x, step[k], row, context)
        epsilon = (x - float(abar[k].sqrt()) * x0) / float((1 - abar[k]).sqrt())
        x = float(abar_next[k].sqrt()) * x0 + float(direction[k]) * epsilon + float(sigma[k]) * tape.xi[:, k]
        if on_round is not None:
            on_round(step[k] + 1, x)
    return check_finite(x)


def _steps_and_rows(num_steps: int, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """step (K, B), row k full of k, and row (B,), 0 to B - 1: made beforehand, so that no step copies from the host."""
    step = torch.arange(num_steps, device=device).unsqueeze(1).expand(num_steps, batch_size)
    return step, torch.arange(batch_size, device=device)
