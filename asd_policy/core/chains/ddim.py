"""DDIM with noise as a Gaussian chain (Song et al. 2021, eq. 12, https://arxiv.org/abs/2010.02502)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.chain import Chain, GaussianChain
from asd_policy.core.checks import is_real
from asd_policy.core.denoiser import (
    AffineDenoiser,
    Denoiser,
    NetworkDenoiser,
    clipped,
    device_of,
    is_plain_call,
    per_sample,
)
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError

SMALLEST_B = 1e-8
"""Where DDIM leaves a state as it is, b = 0. This b is lost in float32, and still carries what clipping changes."""
ROUNDING = 1e-9
"""Variance below zero that float64's rounding explains."""


def ddim_chain(
    schedule: Schedule, num_steps: int = 50, eta: float = 1.0, set_alpha_to_one: bool = True
) -> GaussianChain:
    """The chain of `sample_ddim` with the same arguments and eta > 0, and of diffusers' DDIMScheduler.

    a = sqrt((1 - abar' - s^2) / (1 - abar)), b = sqrt(abar') - a sqrt(abar), and
    s = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar')). With use_clipped_model_output=False the chain is the
    same, on the denoiser that `unclipped_ddim` makes.

    Raises:
        ConfigError: unless `eta` is a positive number, or as `ddim_coefficients`.
    """
    check_noisy(eta)
    ddim = ddim_coefficients(schedule, num_steps, eta, set_alpha_to_one)
    return GaussianChain(ddim.a, ddim.b, ddim.sigma, ddim.timesteps)


def unclipped_ddim(
    denoiser: Denoiser, schedule: Schedule, num_steps: int = 50, eta: float = 1.0, set_alpha_to_one: bool = True
) -> Denoiser:
    """The denoiser for `ddim_chain` with the same arguments that makes it DDIM with use_clipped_model_output=False.

    There the noise direction comes from the unclipped prediction. Where nothing is clipped, that makes no difference.

    Raises:
        ConfigError: if the denoiser cannot return unclipped predictions.
    """
    check_noisy(eta)
    unclipped, bound = without_clip(denoiser)
    if bound is None:
        return denoiser
    assert isinstance(unclipped, AffineDenoiser)
    ddim = ddim_coefficients(schedule, num_steps, eta, set_alpha_to_one)
    clipped_weight, weight = torch.zeros(2, len(schedule.alphas_cumprod), device="cpu")
    clipped_weight[ddim.timesteps] = (ddim.next_signal / ddim.b).float()
    weight[ddim.timesteps] = (ddim.a * ddim.signal / ddim.b).float()
    device = device_of(denoiser)
    return UnclippedDdim(unclipped, bound, clipped_weight.to(device), weight.to(device))


class UnclippedDdim(NetworkDenoiser):
    """X = (sqrt(abar') clip(x0) - a sqrt(abar) x0) / b, with weights looked up by timestep."""

    clipped_weight: Tensor
    weight: Tensor

    def __init__(self, unclipped: AffineDenoiser, bound: float, clipped_weight: Tensor, weight: Tensor):
        super().__init__(unclipped.net, clip=None)
        self.unclipped, self.bound = unclipped, bound
        self.register_buffer("clipped_weight", clipped_weight, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def check_timesteps(self, timesteps: Tensor) -> None:
        self.unclipped.check_timesteps(timesteps)

    def to_clean(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        x0 = self.unclipped.to_clean(x, t, output)
        return per_sample(self.clipped_weight[t], x) * clipped(x0, self.bound) - per_sample(self.weight[t], x) * x0


class DdimCoefficients(NamedTuple):
    """x' = next_signal x0 + direction eps + sigma xi, with eps = (x - signal x0) / noise. Each (K,) float64."""

    timesteps: Tensor  # (K,) int64
    signal: Tensor
    noise: Tensor
    next_signal: Tensor
    direction: Tensor
    sigma: Tensor

    @property
    def a(self) -> Tensor:
        """(K,) the weight of x."""
        return self.direction / self.noise

    @property
    def b(self) -> Tensor:
        """(K,) the weight of x0."""
        return (self.next_signal - self.a * self.signal).clamp(min=SMALLEST_B)


def ddim_coefficients(schedule: Schedule, num_steps: int, eta: float, set_alpha_to_one: bool) -> DdimCoefficients:
    """The coefficients of DDIM; arguments as in `sample_ddim`.

    Raises:
        ConfigError: as `Schedule.with_num_steps`, or on an `eta` with which a step would add more noise than is left.
    """
    strided = schedule.with_num_steps(num_steps)
    abar, abar_next = strided.abar, _abar_next(strided, set_alpha_to_one)
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)).sqrt()
    left = 1 - abar_next - sigma**2  # the variance that is left to the noise direction
    if bool((left < -ROUNDING).any()):
        raise ConfigError(
            f"eta is {eta!r}: with {strided.num_steps} steps, the noise of a step would exceed the level that it "
            "leads to. Expected a smaller eta; 0 to 1 fits every schedule."
        )
    direction = left.clamp(min=0).sqrt()
    return DdimCoefficients(strided.timesteps, abar.sqrt(), (1 - abar).sqrt(), abar_next.sqrt(), direction, sigma)


def _abar_next(strided: Schedule, set_alpha_to_one: bool) -> Tensor:
    """(K,) the signal's share of variance after each step. DDIM steps by T // K timesteps, whatever the spacing."""
    abar = strided.alphas_cumprod
    following = strided.timesteps - len(abar) // strided.num_steps
    final = abar.new_ones(()) if set_alpha_to_one else abar[0]
    return torch.where(following >= 0, abar[following.clamp(min=0)], final)


def as_schedule(chain: Chain) -> Schedule:
    """The chain as a Schedule, whose training timesteps DDIM strides. Raises ConfigError if it is another chain."""
    if not isinstance(chain, Schedule):
        raise ConfigError(f"DDIM strides the timesteps of a Schedule; got a {type(chain).__name__}.")
    return chain


def check_eta(eta: float) -> None:
    """Raise ConfigError unless DDIM's `eta` is a finite number of at least 0."""
    if not is_real(eta) or not 0 <= eta < math.inf:
        raise ConfigError(f"eta is {eta!r}; expected a number of at least 0.")


def check_switches(use_clipped_model_output: bool | None, set_alpha_to_one: bool | None) -> None:
    """Raise ConfigError unless both of DDIM's switches are True, False or None."""
    switches = {"use_clipped_model_output": use_clipped_model_output, "set_alpha_to_one": set_alpha_to_one}
    for name, value in switches.items():
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; expected True, False or None.")


def check_noisy(eta: float) -> None:
    """Raise ConfigError unless DDIM with this `eta` has noise."""
    check_eta(eta)
    if eta == 0:
        raise ConfigError(
            "eta is 0: DDIM then draws no noise, so no draft of a step can be accepted and every step costs a round. "
            "Expected eta > 0 (1 is DDPM's small variance); sampler 'ddim' draws with eta 0."
        )


def without_clip(denoiser: Denoiser) -> tuple[Denoiser, float | None]:
    """The denoiser without its clip, and the clip. Raises ConfigError if it has a clip that cannot be removed."""
    clip = getattr(denoiser, "clip", None)
    if clip is None:
        return denoiser, None
    if not isinstance(denoiser, AffineDenoiser) or not is_plain_call(denoiser):
        raise ConfigError(
            f"use_clipped_model_output=False needs predictions before they are clipped, which a "
            f"{type(denoiser).__name__} does not tell; take an EpsilonDenoiser, VDenoiser or SampleDenoiser."
        )
    return denoiser.without_clip(), clip
