"""Denoisers of networks that are trained at real-valued times or noise levels.

Each gives the weights of `NetworkDenoiser`: x0 = c_skip x + c_out net(c_in x, c_noise, cond).
"""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.checks import as_positive
from asd_policy.core.denoiser import Network, NetworkDenoiser
from asd_policy.core.paths import GaussianPath
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError
from asd_policy.plugins import check_members


class SigmaDenoiser(NetworkDenoiser):
    """A network of a Schedule's timesteps t, on samples x = x* + sigma(t) eps: it is given x / sqrt(sigma^2 + 1).

    diffusers' Euler schedulers call a network so. Between the training timesteps sigma is interpolated linearly, as
    they do; t is real-valued, from 0 to T - 1.
    """

    sigmas: Tensor

    def __init__(self, net: Network, schedule: Schedule, clip: float | None = None):
        super().__init__(net, clip)
        abar = schedule.alphas_cumprod
        self.register_buffer("sigmas", ((1 - abar) / abar).sqrt().float(), persistent=False)

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level (N,) at the timesteps t (N,)."""
        low = t.floor().long()
        below, above = self.sigmas[low], self.sigmas[(low + 1).clamp(max=len(self.sigmas) - 1)]
        return below + (t - low) * (above - below)

    def scale(self, t: Tensor) -> Tensor:
        return (self.sigma(t) ** 2 + 1).rsqrt()

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """The timesteps (K,) at which the noise levels are `sigmas` (K,): the inverse of `sigma`, on the CPU.

        Raises:
            ConfigError: on a level outside those of the training timesteps.
        """
        table, levels = self.sigmas.double().cpu(), sigmas.double().cpu()
        if not bool(((levels >= table[0]) & (levels <= table[-1])).all()):
            raise ConfigError(
                f"The noise levels are {levels.tolist()!s:.80}; expected {float(table[0]):.4g} to "
                f"{float(table[-1]):.4g}, those of the schedule's training timesteps."
            )
        high = torch.searchsorted(table, levels).clamp(min=1)
        below, above = table[high - 1], table[high]
        return high - 1 + (levels - below) / (above - below)

    def check_timesteps(self, timesteps: Tensor) -> None:
        last = len(self.sigmas) - 1
        if not bool(((timesteps >= 0) & (timesteps <= last)).all()):
            raise ConfigError(
                f"The timesteps are {timesteps.tolist()!s:.80}; a {type(self).__name__} takes 0 to {last}, its "
                "schedule's training timesteps and the times between. Take another chain."
            )


class SigmaEpsilonDenoiser(SigmaDenoiser):
    """The network predicts the noise: x0 = x - sigma eps."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma(t)
        return torch.ones_like(sigma), -sigma


class SigmaVDenoiser(SigmaDenoiser):
    """The network predicts the velocity: x0 = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) v."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma(t)
        return 1 / (sigma**2 + 1), -sigma * (sigma**2 + 1).rsqrt()


SIGMA_DENOISERS = {"epsilon": SigmaEpsilonDenoiser, "v_prediction": SigmaVDenoiser}
"""diffusers' `prediction_type` -> class of denoisers on samples x* + sigma eps."""


class EdmDenoiser(NetworkDenoiser):
    """EDM's preconditioning at noise level t = sigma (Karras et al. 2022, https://arxiv.org/abs/2206.00364, Table 1).

    c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / sqrt(sigma^2 + d^2), c_in = 1 / sqrt(sigma^2 + d^2) and
    c_noise = ln(sigma) / 4, with d = sigma_data, the data's standard deviation.
    """

    def __init__(self, net: Network, sigma_data: float = 0.5, clip: float | None = None):
        super().__init__(net, clip)
        self.sigma_data = as_positive(sigma_data, "sigma_data")

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        variance = t**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, self.sigma_data * t * variance.rsqrt()

    def scale(self, t: Tensor) -> Tensor:
        return (t**2 + self.sigma_data**2).rsqrt()

    def network_time(self, t: Tensor) -> Tensor:
        return t.log() / 4


class ScoreDenoiser(NetworkDenoiser):
    """A network that predicts the score at x_t = alpha x* + sigma eps: x0 = (x + sigma^2 score) / alpha."""

    def __init__(self, net: Network, path: GaussianPath, clip: float | None = None):
        super().__init__(net, clip)
        check_members("path", path, GaussianPath)
        self.path = path

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _, _ = self.path.levels(t)
        return 1 / alpha, sigma**2 / alpha


class VelocityDenoiser(NetworkDenoiser):
    """A network that predicts the velocity dx_t/dt = alpha' x* + sigma' eps of a path, as in flow matching.

    x0 = (sigma' x - sigma v) / (alpha sigma' - sigma alpha'), which is x - t v for x_t = (1 - t) x* + t eps.
    """

    def __init__(self, net: Network, path: GaussianPath, clip: float | None = None):
        super().__init__(net, clip)
        check_members("path", path, GaussianPath)
        self.path = path

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, alpha_rate, sigma_rate = self.path.levels(t)
        determinant = alpha * sigma_rate - sigma * alpha_rate
        return sigma_rate / determinant, -sigma / determinant
