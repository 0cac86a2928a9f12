"""The plain samplers: one network call per step. `sample_ddpm` is the law that everything else is tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from asd_policy.core.checks import check_condition, is_number
from asd_policy.core.denoiser import AffineDenoiser, Denoiser, check_finite, clipped, denoise, device_of, prepare
from asd_policy.core.noise import Noise, NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError

OnRound = Callable[[Tensor, Tensor], None]
"""Told after each round how far the chains are: the frontier (B,) int64, the steps that are certain, and x (B, *E)."""


@torch.no_grad()
def sample_ddpm(
    denoiser: Denoiser,
    schedule: Schedule,
    event_shape: Sequence[int],
    batch_size: int = 1,
    cond: Tensor | None = None,
    generator: Noise = None,
    on_round: OnRound | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Ancestral sampling in K steps (Ho et al. 2020, Algorithm 2).

    Args:
        cond: (B, ...) or None, handed to the denoiser.
        generator: one for the batch or one per sample; the tape drawn is the one `AsdSampler` draws.
        on_round: called after each step.
        device: where to sample if the denoiser is a plain function; a module is sampled where its parameters lie.

    Returns:
        x (B, *event_shape), float32, on that device.

    Raises:
        ConfigError: on a batch, condition or denoiser output whose shape does not fit, or a device that is not the
            denoiser's.
        NumericalError: if the network returned NaN or infinity.
    """
    check_condition(cond, batch_size)
    device = device_of(denoiser, device)
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
    generator: Noise = None,
    num_steps: int = 10,
    eta: float = 0.0,
    on_round: OnRound | None = None,
    use_clipped_model_output: bool = True,
    set_alpha_to_one: bool = True,
    device: torch.device | str | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12, https://arxiv.org/abs/2010.02502): fewer steps, but another distribution.

    Equal to diffusers' DDIMScheduler with the same settings, in every timestep spacing.

    Args:
        num_steps: steps taken out of the schedule's training timesteps.
        eta: 0 is deterministic given the start; 1 adds the noise of DDPM's small variance.
        use_clipped_model_output: the noise direction is computed from the clipped prediction; otherwise, as is
            diffusers' default, from the prediction before it is clipped. No difference where nothing is clipped.
        set_alpha_to_one: the last step leads to the clean sample; otherwise to training timestep 0.

    Returns and raises as `sample_ddpm`; ConfigError also on an `eta` that is negative or not finite, or if the
    predictions before clipping are asked of a denoiser that cannot tell them.
    """
    check_condition(cond, batch_size)
    check_eta(eta)
    device = device_of(denoiser, device)
    strided = schedule.with_num_steps(num_steps)
    num_steps = strided.num_steps
    tape = NoiseTape.draw(batch_size, num_steps, event_shape, generator, device)
    abar, abar_next = strided.abar, _ddim_abar_next(strided, set_alpha_to_one)
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
    direction = (1 - abar_next - sigma**2).clamp(min=0).sqrt()
    unclipped, clip = (denoiser, None) if use_clipped_model_output else _unclipped(denoiser)
    context = prepare(denoiser, strided.timesteps.to(device), cond)
    step, row = _steps_and_rows(num_steps, batch_size, device)
    x = tape.start
    for k in range(num_steps):
        x0 = denoise(unclipped, x, step[k], row, context)
        epsilon = (x - float(abar[k].sqrt()) * x0) / float((1 - abar[k]).sqrt())
        x0 = clipped(x0, clip)
        x = float(abar_next[k].sqrt()) * x0 + float(direction[k]) * epsilon + float(sigma[k]) * tape.xi[:, k]
        if on_round is not None:
            on_round(step[k] + 1, x)
    return check_finite(x)


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


def _unclipped(denoiser: Denoiser) -> tuple[Denoiser, float | None]:
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
