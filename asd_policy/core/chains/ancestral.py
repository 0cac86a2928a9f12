"""Ancestral sampling over noise levels: the samples are x = x* + sigma eps.

k-diffusion's `sample_euler_ancestral` (https://github.com/crowsonkb/k-diffusion) and diffusers'
EulerAncestralDiscreteScheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asd_policy.core.chain import GaussianChain
from asd_policy.core.checks import as_levels, as_positive
from asd_policy.errors import ConfigError


def ancestral_chain(
    sigmas: Tensor | Sequence[float],
    eta: float = 1.0,
    timesteps: Tensor | None = None,
    start_std: float | None = None,
) -> GaussianChain:
    """An Euler step down to sigma_down, then noise up to the next level: x + (sigma_down - sigma) / sigma (x - x0).

    sigma_up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma) and sigma_down = sqrt(sigma'^2 - sigma_up^2)
    for the level sigma' after sigma. So a = sigma_down / sigma, b = 1 - a, s = sigma_up.

    Args:
        sigmas: (K + 1,) descending levels above 0; the last may be 0.
        eta: 1 for as much noise as the levels allow, less for less. Above 0.
        timesteps: (K,) what the denoiser is told; the levels if None.
        start_std: standard deviation of x_0; the first level if None.

    Raises:
        ConfigError: on levels that do not descend, or an `eta` that is not a positive number.
    """
    levels, eta = as_levels(sigmas), as_positive(eta, "eta")
    now, then = levels[:-1], levels[1:]
    up = torch.minimum(then, eta * then * (now**2 - then**2).sqrt() / now)
    a = (then**2 - up**2).clamp(min=0).sqrt() / now
    start = float(levels[0]) if start_std is None else start_std
    return GaussianChain(a, 1 - a, up, now if timesteps is None else timesteps, start)


def euler_ancestral_chain(scheduler: Any) -> GaussianChain:
    """The chain of a diffusers EulerAncestralDiscreteScheduler after `set_timesteps`.

    Its denoiser is a `SigmaEpsilonDenoiser` or `SigmaVDenoiser` on `Schedule.from_diffusers(scheduler)`.

    Raises:
        ConfigError: on a scheduler of another class. Other classes with sigmas take other steps.
    """
    name = type(scheduler).__name__
    if name != "EulerAncestralDiscreteScheduler":
        raise ConfigError(f"The scheduler is a {name}; expected diffusers' EulerAncestralDiscreteScheduler.")
    return ancestral_chain(scheduler.sigmas, 1.0, scheduler.timesteps, float(scheduler.init_noise_sigma))
