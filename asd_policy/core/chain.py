"""GaussianChain: x_{k+1} = a_k x_k + b_k X_k(x_k) + s_k xi_k. The samplers need nothing else of a diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asd_policy.core.checks import as_positive
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """A chain of K steps, from x_0 = start_std z with standard normal z. `asd_policy.core.chains` makes the known ones.

    X_k(x) is the denoiser's prediction of the clean sample, and xi_k is standard normal. The samplers compute in
    float32. A step with s_k = 0 adds no noise, so its draft is kept only if it is the exact mean. Speculation ends at
    such a step: the law is exact, but each of them costs a round. The last step may have s_k = 0 at no cost.

    Raises:
        ConfigError: unless a, b, s and timesteps are vectors of one length of at least 1, of finite real numbers with
            s >= 0, and start_std is a positive number.
    """

    a: Tensor  # (K,) float64, weight of the state x_k in the mean of x_{k+1}
    b: Tensor  # (K,) float64, weight of the prediction X_k
    s: Tensor  # (K,) float64, standard deviation of x_{k+1} given x_k
    timesteps: Tensor  # (K,) what the denoiser is told as `t`: int64 if given as integers, else float32
    start_std: float = 1.0  # standard deviation of x_0

    def __post_init__(self) -> None:
        for name in ("a", "b", "s", "timesteps"):
            object.__setattr__(self, name, _vector(name, getattr(self, name)))
        sizes = [len(value) for value in (self.a, self.b, self.s, self.timesteps)]
        if len(set(sizes)) > 1 or sizes[0] == 0:
            raise ConfigError(f"a, b, s and timesteps have lengths {sizes}; expected one length, of at least 1.")
        if bool((self.s < 0).any()):
            raise ConfigError(f"s is {self.s.tolist()!s:.80}; expected standard deviations of at least 0.")
        object.__setattr__(self, "start_std", as_positive(self.start_std, "start_std"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GaussianChain):
            return NotImplemented
        pairs = ((self.a, other.a), (self.b, other.b), (self.s, other.s), (self.timesteps, other.timesteps))
        return self.start_std == other.start_std and all(one.equal(two) for one, two in pairs)

    def __hash__(self) -> int:
        return hash((self.num_steps, self.start_std))

    @property
    def num_steps(self) -> int:
        """K, the number of steps: the sequential network calls of the plain sampler."""
        return len(self.a)


Chain = Schedule | GaussianChain
"""What the samplers take."""


def as_chain(chain: Chain) -> GaussianChain:
    """The coefficients of a chain. Raises ConfigError if it is neither a Schedule nor a GaussianChain."""
    if isinstance(chain, Schedule):
        return GaussianChain(chain.a, chain.b, chain.s, chain.timesteps)
    if not isinstance(chain, GaussianChain):
        raise ConfigError(f"The chain is a {type(chain).__name__}; expected a Schedule or a GaussianChain.")
    return chain


def _vector(name: str, value: Any) -> Tensor:
    """The value as a vector on the CPU. Coefficients become float64; timesteps int64 or float32."""
    try:
        vector = torch.as_tensor(value, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is {value!r:.80}; expected a vector of real numbers.") from error
    if vector.ndim != 1 or vector.is_complex() or vector.dtype == torch.bool:
        found = f"a tensor of shape {tuple(vector.shape)} and type {vector.dtype}"
        raise ConfigError(f"{name} is {found}; expected a vector of real numbers.")
    if not bool(vector.float().isfinite().all()):
        raise ConfigError(f"{name} is {vector.tolist()!s:.80}; expected numbers that are finite in float32.")
    kind = torch.float64 if name != "timesteps" else torch.float32 if vector.is_floating_point() else torch.int64
    return vector.to(kind, copy=True)  # the caller may change the argument afterwards
