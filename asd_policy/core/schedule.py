"""The coefficients of the reverse chain x_{k+1} = a_k x_k + b_k X_k(x_k) + s_k xi_k.

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 7 (https://arxiv.org/abs/2006.11239). Step k = 0 is the
noisiest. `timesteps[k]` is the training timestep that the network is told at step k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import ConfigError, UnknownNameError

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")
SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class Schedule:
    """A DDPM's reverse chain of K steps, strided from T training timesteps. All tensors are float64 on the CPU.

    Build one with `from_betas` or `from_diffusers`.
    """

    alphas_cumprod: Tensor  # (T,) abar of each training timestep
    timesteps: Tensor  # (K,) int64, descending
    variance: str = "fixed_small"
    spacing: str = "leading"
    steps_offset: int = 0

    @property
    def num_steps(self) -> int:
        """K, the number of steps: sequential network calls of the plain sampler."""
        return len(self.timesteps)

    @property
    def abar(self) -> Tensor:
        """(K,) the signal's share of variance before each step."""
        return self.alphas_cumprod[self.timesteps]

    @property
    def abar_next(self) -> Tensor:
        """(K,) the signal's share of variance after each step ("prev" in DDPM's order of time); 1 after the last."""
        return torch.cat([self.abar[1:], self.abar.new_ones(1)])

    @property
    def _alpha(self) -> Tensor:
        return self.abar / self.abar_next

    @property
    def a(self) -> Tensor:
        """(K,) weight of the state x_k in the mean of x_{k+1}."""
        return self._alpha.sqrt() * (1 - self.abar_next) / (1 - self.abar)

    @property
    def b(self) -> Tensor:
        """(K,) weight of the clean-sample prediction X_k in the mean of x_{k+1}."""
        return self.abar_next.sqrt() * (1 - self._alpha) / (1 - self.abar)

    @property
    def s(self) -> Tensor:
        """(K,) standard deviation of x_{k+1} given x_k; the last step returns its mean, so s_{K-1} = 0."""
        beta = 1 - self._alpha
        small = beta * (1 - self.abar_next) / (1 - self.abar)
        s = (beta if self.variance == "fixed_large" else small).sqrt()
        if self.timesteps[-1] == 0:  # diffusers adds noise at every later timestep
            s[-1] = 0
        return s

    def with_num_steps(self, num_steps: int | None) -> Schedule:
        """The same diffusion strided to `num_steps` of its T training timesteps; None takes all of them.

        Raises:
            ConfigError: if `num_steps` is not between 1 and T.
        """
        total = len(self.alphas_cumprod)
        if num_steps is None:
            return replace(self, timesteps=torch.arange(total - 1, -1, -1))
        if not 1 <= num_steps <= total:
            raise ConfigError(f"num_steps is {num_steps}; expected 1 to {total}, the number of training timesteps.")
        timesteps = _strided_timesteps(total, num_steps, self.spacing, self.steps_offset)
        if timesteps.max() >= total:
            raise ConfigError(
                f"steps_offset {self.steps_offset} with num_steps {num_steps} asks for timestep "
                f"{int(timesteps.max())} of {total} training timesteps. Take fewer steps or a smaller offset."
            )
        return replace(self, timesteps=timesteps)

    @staticmethod
    def from_betas(
        betas: Tensor,
        variance: str = "fixed_small",
        num_steps: int | None = None,
        spacing: str = "leading",
        steps_offset: int = 0,
    ) -> Schedule:
        """The chain of a DDPM trained with `betas` (T,), in diffusers' vocabulary for everything else.

        Raises:
            ConfigError: on betas outside (0, 1), an unknown name, or a `num_steps` that does not fit.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ConfigError(f"betas must be a vector with values in (0, 1); got shape {tuple(betas.shape)}: {betas}.")
        if variance not in VARIANCES:
            raise UnknownNameError("variance", variance, VARIANCES)
        if spacing not in SPACINGS:
            raise UnknownNameError("timestep spacing", spacing, SPACINGS)
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        schedule = Schedule(alphas_cumprod, torch.empty(0, dtype=torch.int64), variance, spacing, steps_offset)
        return schedule.with_num_steps(num_steps)

    @staticmethod
    def from_diffusers(scheduler: Any, num_steps: int | None = None) -> Schedule:
        """The chain of a diffusers scheduler, or of its config as a mapping (missing entries as in DDPMScheduler).

        Raises:
            ConfigError: on a beta schedule, variance or spacing that this package does not sample exactly.
        """
        config: Mapping[str, Any] = scheduler if isinstance(scheduler, Mapping) else scheduler.config
        if config.get("rescale_betas_zero_snr"):
            raise ConfigError("rescale_betas_zero_snr=True is not supported: its first step has no signal at all.")
        return Schedule.from_betas(
            _betas_from_config(config),
            variance=config.get("variance_type") or "fixed_small",  # null means the same to DDPMScheduler
            num_steps=num_steps,
            spacing=config.get("timestep_spacing", "leading"),
            steps_offset=config.get("steps_offset", 0),
        )


def _strided_timesteps(total: int, num_steps: int, spacing: str, steps_offset: int) -> Tensor:
    """(K,) int64, descending: Table 2 of https://arxiv.org/abs/2305.08891, as diffusers rounds it."""
    if spacing == "linspace":
        return torch.linspace(0, total - 1, num_steps, dtype=torch.float64).round().long().flip(0)
    if spacing == "leading":
        return (torch.arange(num_steps) * (total // num_steps)).flip(0) + steps_offset
    steps = total - torch.arange(num_steps, dtype=torch.float64) * (total / num_steps)
    return steps.round().long() - 1


def _betas_from_config(config: Mapping[str, Any]) -> Tensor:
    """(T,) float64 betas of a diffusers scheduler config."""
    if config.get("trained_betas") is not None:
        return torch.as_tensor(config["trained_betas"], dtype=torch.float64)
    total = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if name == "linear":
        return torch.linspace(start, end, total, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672
        edges = torch.arange(total + 1, dtype=torch.float64) / total
        abar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    raise UnknownNameError("beta_schedule", name, ("linear", "scaled_linear", "squaredcos_cap_v2"))
