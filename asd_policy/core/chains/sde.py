"""Euler-Maruyama steps of reverse SDEs: variance-preserving, variance-exploding, and flow matching with noise.

Song et al. 2021 (https://arxiv.org/abs/2011.13456), eq. 6; Ma et al. 2024, SiT (https://arxiv.org/abs/2401.08740), eq.
4; Albergo et al. 2023 (https://arxiv.org/abs/2303.08797).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asd_policy.core.chain import GaussianChain
from asd_policy.core.checks import as_levels
from asd_policy.core.paths import GaussianPath
from asd_policy.errors import ConfigError
from asd_policy.plugins import check_members


def sde_chain(path: GaussianPath, times: Tensor | Sequence[float]) -> GaussianChain:
    """The chain x' = x - h v + h w / 2 score + sqrt(w h) xi, with h = t - t'.

    The path's velocity is v = alpha' x0 + sigma' eps and its score -eps / sigma, with eps = (x - alpha x0) / sigma. So

        a = 1 - h sigma' / sigma - h w / (2 sigma^2),
        b = h (alpha sigma' / sigma - alpha') + h w alpha / (2 sigma^2),    s = sqrt(w h).

    The last step adds no noise. If it ends at clean samples (sigma = 0), it is the ODE's Euler step, with w = 0.
    Otherwise it is the mean of the SDE's step.

    The path's `start_std` is the standard deviation of x_0 at t = 1. A chain that begins later starts with less noise:
    `start_std` times sigma / sigma(1).

    Args:
        path: a VpPath, VePath, FlowPath, or another GaussianPath.
        times: (K + 1,) descending within 1 to 0, such as `torch.linspace(1, 1e-3, 51)` for a VpPath, or
            `torch.linspace(1, 0, 51)` for a FlowPath. The denoiser is told the first K.

    Raises:
        ConfigError: on times that do not descend within 1 to 0, or a path that is not finite there.
    """
    check_members("path", path, GaussianPath)
    grid = as_levels(times, "times")
    if grid[0] > 1:
        raise ConfigError(f"times begin at {float(grid[0])}; expected times within 1 (noise) and 0 (data).")
    t, h = grid[:-1], -grid.diff()
    alpha, sigma, alpha_rate, sigma_rate = path.levels(t)
    w = path.diffusion(t)
    s = (w * h).sqrt()
    s[-1] = 0
    if path.levels(grid[-1]).sigma == 0:
        w = torch.cat([w[:-1], w.new_zeros(1)])
    a = 1 - h * sigma_rate / sigma - h * w / (2 * sigma**2)
    b = h * (alpha * sigma_rate / sigma - alpha_rate) + h * w * alpha / (2 * sigma**2)
    start_std = path.start_std * float(sigma[0] / path.levels(torch.ones_like(t[:1])).sigma)
    return GaussianChain(a, b, s, t, start_std)
