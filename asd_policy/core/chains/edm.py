"""EDM's stochastic sampler (Karras et al. 2022, Algorithm 2, https://arxiv.org/abs/2206.00364), with Euler steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asd_policy.core.chain import GaussianChain
from asd_policy.core.checks import as_count, as_levels, as_positive, is_real
from asd_policy.errors import ConfigError


def edm_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The noise levels (K + 1,) of `num_steps` steps, evenly spaced in sigma^(1 / rho), then 0 (eq. 5).

    Raises:
        ConfigError: unless `num_steps` is at least 1 and 0 < sigma_min < sigma_max, rho > 0.
    """
    num_steps, rho = as_count(num_steps, "num_steps"), as_positive(rho, "rho")
    if as_positive(sigma_min, "sigma_min") >= as_positive(sigma_max, "sigma_max"):
        raise ConfigError(f"sigma_min is {sigma_min} and sigma_max {sigma_max}; expected sigma_min < sigma_max.")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    share = torch.arange(num_steps, dtype=torch.float64, device="cpu") / max(1, num_steps - 1)
    return torch.cat([(high + share * (low - high)) ** rho, share.new_zeros(1)])


def edm_chain(
    sigmas: Tensor | Sequence[float],
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.003,
) -> GaussianChain:
    """Raise the noise level from sigma to hat = (1 + gamma) sigma ("churn"), then an Euler step to the next level.

    The chain's states are those after the churn, so that the churn's noise is the step's:

        x' = x + (sigma' - hat) / hat (x - x0) + s_noise sqrt(hat'^2 - sigma'^2) xi.

    So a = sigma' / hat and b = 1 - a; the denoiser is told hat. Algorithm 2 corrects each step by Heun's rule, with a
    second network call at a state that depends on the first. Such a step is not a x + b X(x) with one call, so this
    chain leaves the correction out. Outside s_tmin to s_tmax there is no churn, and each step costs a round of ASD.

    Args:
        sigmas: (K + 1,) descending levels above 0, and 0; see `edm_sigmas`.
        s_churn: amount of churn: gamma = min(s_churn / K, sqrt(2) - 1). The defaults are those for ImageNet.
        s_tmin, s_tmax: the levels with churn.
        s_noise: factor of the churn's noise.

    Raises:
        ConfigError: on levels that do not descend, or numbers out of range; without churn there is no noise.
    """
    levels = as_levels(sigmas)
    now, then = levels[:-1], levels[1:]
    s_churn, s_noise = as_positive(s_churn, "s_churn"), as_positive(s_noise, "s_noise")
    if not is_real(s_tmin) or not is_real(s_tmax):
        raise ConfigError(f"s_tmin is {s_tmin!r} and s_tmax is {s_tmax!r}; expected noise levels.")
    gamma = min(s_churn / len(now), math.sqrt(2) - 1)
    hat = torch.where((now >= s_tmin) & (now <= s_tmax), (1 + gamma) * now, now)
    churn = s_noise * (hat**2 - now**2).sqrt()  # (K,) of the noise that each level's churn adds
    start_std = math.hypot(float(now[0]), float(churn[0]))
    s = torch.cat([churn[1:], churn.new_zeros(1)])
    return GaussianChain(then / hat, 1 - then / hat, s, hat, start_std)
