"""Gaussian paths x_t = alpha(t) x* + sigma(t) eps, from data at t = 0 to noise at t = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from asd_policy.core.checks import as_positive
from asd_policy.errors import ConfigError


class Levels(NamedTuple):
    """A path at the times t, and its derivatives in t. Each has the shape of t."""

    alpha: Tensor
    sigma: Tensor
    alpha_rate: Tensor
    sigma_rate: Tensor


class GaussianPath(Protocol):
    """A path with its reverse SDE: dx = v dt - w/2 score dt + sqrt(w) dW, backwards in time; v is its velocity."""

    @property
    def start_std(self) -> float:
        """Standard deviation of the samples at t = 1."""
        ...

    def levels(self, t: Tensor) -> Levels:
        """alpha, sigma and their rates at the times t."""
        ...

    def diffusion(self, t: Tensor) -> Tensor:
        """w at the times t."""
        ...


@dataclass(frozen=True)
class VpPath:
    """The variance-preserving SDE (Song et al. 2021, eq. 11, https://arxiv.org/abs/2011.13456): w = beta(t)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    start_std: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_rising("beta_min", self.beta_min, "beta_max", self.beta_max)

    def levels(self, t: Tensor) -> Levels:
        log_alpha = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        half_beta = self.diffusion(t) / 2
        return Levels(alpha, sigma, -half_beta * alpha, half_beta * alpha**2 / sigma)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)


@dataclass(frozen=True)
class VePath:
    """The variance-exploding SDE (Song et al. 2021, eq. 9): w = d sigma^2 / dt, sigma(t) a geometric series."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_rising("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    @property
    def start_std(self) -> float:
        return self.sigma_max

    def levels(self, t: Tensor) -> Levels:
        growth = math.log(self.sigma_max / self.sigma_min)
        sigma = self.sigma_min * (growth * t).exp()
        return Levels(torch.ones_like(sigma), sigma, torch.zeros_like(sigma), growth * sigma)

    def diffusion(self, t: Tensor) -> Tensor:
        _, sigma, _, sigma_rate = self.levels(t)
        return 2 * sigma * sigma_rate


@dataclass(frozen=True)
class FlowPath:
    """Flow matching, x_t = (1 - t) x* + t eps, with noise: w = noise t (Ma et al. 2024, https://arxiv.org/abs/2401.08740).

    w may be any function that is positive inside (0, 1): all have the path's marginals. This one is SiT's w = sigma,
    times `noise`.
    """

    noise: float = 1.0

    start_std: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        as_positive(self.noise, "noise")

    def levels(self, t: Tensor) -> Levels:
        one = torch.ones_like(t)
        return Levels(1 - t, t, -one, one)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.noise * t


def _check_rising(low_name: str, low: float, high_name: str, high: float) -> None:
    if as_positive(low, low_name) >= as_positive(high, high_name):
        raise ConfigError(f"{low_name} is {low} and {high_name} is {high}; expected {low_name} < {high_name}.")
