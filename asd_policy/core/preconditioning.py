"""Denoisers of networks that are trained at real-valued times or noise levels.

Each gives the weights of `NetworkDenoiser`: x0 = c_skip x + c_out net(c_in x, c_noise, cond).
"""

from __future__ import annotations

import torch
from torch import Tensor

from asd_policy.core.denoiser import Network, NetworkDenoiser
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError


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
