"""Denoisers: one call, (x, t, cond) -> prediction of the clean sample, for every network.

A denoiser converts the network's output (noise, velocity or clean sample) to a clean sample (DDPM eq. 15; v as in
Salimans & Ho 2022, https://arxiv.org/abs/2202.00512). The conversions are affine in the noisy sample and the output.
Here are those of a Schedule's integer timesteps; `asd_policy.core.preconditioning` has those of real-valued times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn

from asd_policy.core.checks import as_device, is_real
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError, NumericalError

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(Protocol):
    """Any callable that predicts the clean sample, clipping included."""

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """x (N, *E) noisy samples, t (N,) the chain's timesteps, cond (N, ...) or None -> x0 (N, *E)."""
        ...


@runtime_checkable
class PreparedNetwork(Protocol):
    """A network that precomputes the terms without the noisy sample, once for a batch of B samples and K steps."""

    def prepare(self, timesteps: Tensor, cond: Tensor) -> Any:
        """timesteps (K,), cond (B, ...) -> a tensor, or a NamedTuple of tensors."""
        ...

    def predict(self, x: Tensor, step: Tensor, row: Tensor, prepared: Any) -> Tensor:
        """The network's output for x (N, *E), timesteps[step], cond[row]; step and row (N,) int64."""
        ...


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Append singleton dimensions to `value` (N,) until it broadcasts against x (N, *E)."""
    return value.view((-1,) + (1,) * (x.ndim - 1))


def clipped(x0: Tensor, clip: float | None) -> Tensor:
    """Clamp predictions x0 to [-clip, clip]; None leaves them unchanged.

    Infinity stays infinity. Clamping it to a number would hide that the network had failed.
    """
    return x0 if clip is None else torch.where(x0.isfinite(), x0.clamp(-clip, clip), x0)


class NetworkDenoiser(nn.Module):
    """x0 = clip(c_skip(t) x + c_out(t) net(c_in(t) x, c_noise(t), cond)).

    Karras et al. 2022, eq. 7 (https://arxiv.org/abs/2206.00364). Subclasses define `weights`, and `scale` and
    `network_time` unless the network takes x and t as they are.
    """

    def __init__(self, net: Network, clip: float | None):
        super().__init__()
        if clip is not None and not (is_real(clip) and 0 < clip < math.inf):
            raise ConfigError(f"clip is {clip!r}; expected a positive number, or None for predictions without bounds.")
        self.net = net
        self.clip = clip

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out (N,) at the times t (N,)."""
        raise NotImplementedError

    def scale(self, t: Tensor) -> Tensor | None:
        """c_in (N,); None is 1."""
        return None

    def network_time(self, t: Tensor) -> Tensor:
        """c_noise (N,), the times that the network is told."""
        return t

    def check_timesteps(self, timesteps: Tensor) -> None:
        """Raise ConfigError if the denoiser does not take one of the timesteps (K,), on the CPU."""
        usable = torch.stack([*self.weights(timesteps), self.network_time(timesteps)]).isfinite().all(dim=0)
        if not bool(usable.all()):
            raise ConfigError(
                f"At the times {timesteps[~usable].tolist()!s:.80} the output of a {type(self).__name__}'s network "
                "determines no clean sample. Begin the chain at another time."
            )

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (N, *E), t (N,), cond (N, ...) or None -> x0 (N, *E)."""
        return self.to_clean(x, t, self.net(self.scaled(x, t), self.network_time(t), cond))

    def scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's input at x (N, *E), t (N,)."""
        scale = self.scale(t)
        return x if scale is None else per_sample(scale, x) * x

    def to_clean(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Convert the network's output (N, *E) at x (N, *E), t (N,) to a prediction of the clean sample (N, *E)."""
        skip, out = self.weights(t)
        return clipped(per_sample(skip, x) * x + per_sample(out, x) * output, self.clip)

    def without_clip(self) -> Self:
        """The same network with unclipped predictions."""
        denoiser = copy.copy(self)
        denoiser.clip = None
        return denoiser


class AffineDenoiser(NetworkDenoiser):
    """x0 = clip(x_weight[t] x + net_weight[t] net(x, t, cond)) for the integer timesteps t of a Schedule."""

    x_weight: Tensor
    net_weight: Tensor

    def __init__(self, net: Network, x_weight: Tensor, net_weight: Tensor, clip: float | None):
        super().__init__(net, clip)
        self.register_buffer("x_weight", x_weight.float(), persistent=False)
        self.register_buffer("net_weight", net_weight.float(), persistent=False)

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.x_weight[t], self.net_weight[t]

    def check_timesteps(self, timesteps: Tensor) -> None:
        last = len(self.x_weight) - 1
        if timesteps.is_floating_point() or not bool(((timesteps >= 0) & (timesteps <= last)).all()):
            raise ConfigError(
                f"The timesteps are {timesteps.tolist()!s:.80}; a {type(self).__name__} takes integers, 0 to {last}: "
                "its schedule's training timesteps. Take a denoiser of real-valued times, or another chain."
            )


class EpsilonDenoiser(AffineDenoiser):
    """A network that predicts the noise: x0 = (x - sqrt(1 - abar) eps) / sqrt(abar)."""

    def __init__(self, net: Network, schedule: Schedule, clip: float | None = 1.0):
        abar = schedule.alphas_cumprod
        super().__init__(net, abar.rsqrt(), -((1 - abar) / abar).sqrt(), clip)


class VDenoiser(AffineDenoiser):
    """A network that predicts the velocity: x0 = sqrt(abar) x - sqrt(1 - abar) v."""

    def __init__(self, net: Network, schedule: Schedule, clip: float | None = 1.0):
        abar = schedule.alphas_cumprod
        super().__init__(net, abar.sqrt(), -(1 - abar).sqrt(), clip)


class SampleDenoiser(AffineDenoiser):
    """A network that predicts the clean sample itself."""

    def __init__(self, net: Network, schedule: Schedule, clip: float | None = 1.0):
        abar = schedule.alphas_cumprod
        super().__init__(net, torch.zeros_like(abar), torch.ones_like(abar), clip)


DENOISERS = {"epsilon": EpsilonDenoiser, "v_prediction": VDenoiser, "sample": SampleDenoiser}
"""diffusers' `prediction_type` -> class of denoisers."""


class Context(NamedTuple):
    """The denoiser's inputs that are fixed for a batch of B samples and all K steps."""

    timesteps: Tensor  # (K,) as in the chain
    cond: Tensor | None  # (B, ...)
    prepared: Any = None  # the network's precomputed terms, if it is a PreparedNetwork


def can_prepare(net: Network) -> bool:
    """Whether `prepare` and `predict` can replace a call of the network.

    False if a call does more: a subclass or wrapper with its own `forward`, or hooks on the call.
    """
    if not isinstance(net, PreparedNetwork) or not isinstance(net, nn.Module):
        return isinstance(net, PreparedNetwork)
    if "forward" in vars(net) or net._forward_hooks or net._forward_pre_hooks:
        return False
    defined = {name: next((c for c in type(net).__mro__ if name in vars(c)), None) for name in ("forward", "predict")}
    forward, predict = defined["forward"], defined["predict"]
    return forward is not None and predict is not None and issubclass(predict, forward)


def is_plain_call(denoiser: Denoiser) -> TypeGuard[NetworkDenoiser]:
    """Whether a call of the denoiser is that of `NetworkDenoiser`: no `forward` of its own, and no hooks."""
    if not isinstance(denoiser, NetworkDenoiser) or type(denoiser).forward is not NetworkDenoiser.forward:
        return False
    return not ("forward" in vars(denoiser) or denoiser._forward_hooks or denoiser._forward_pre_hooks)


def prepare(denoiser: Denoiser, timesteps: Tensor, cond: Tensor | None) -> Context:
    """The context of a batch: timesteps (K,), cond (B, ...) or None. Precomputes what the steps share."""
    if cond is not None and is_plain_call(denoiser) and can_prepare(denoiser.net):
        assert isinstance(denoiser.net, PreparedNetwork)
        return Context(timesteps, cond, denoiser.net.prepare(denoiser.network_time(timesteps), cond))
    return Context(timesteps, cond)


def denoise(denoiser: Denoiser, x: Tensor, step: Tensor, row: Tensor, context: Context) -> Tensor:
    """Predict the clean samples of x (N, *E), each at its step (N,) int64 and for its row (N,) int64 of the batch.

    Raises:
        ConfigError: if the network returned another shape.
    """
    timesteps, cond, prepared = context
    t = timesteps[step]
    if prepared is None:
        x0 = denoiser(x, t, None if cond is None else cond[row])
    else:
        assert isinstance(denoiser, NetworkDenoiser)
        assert isinstance(denoiser.net, PreparedNetwork)
        x0 = denoiser.to_clean(x, t, denoiser.net.predict(denoiser.scaled(x, t), step, row, prepared))
    if not isinstance(x0, Tensor):
        raise ConfigError(f"The denoiser returned a {type(x0).__name__}; expected a tensor of shape {tuple(x.shape)}.")
    if x0.shape != x.shape or x0.is_complex():
        raise ConfigError(
            f"The denoiser returned shape {tuple(x0.shape)} and type {x0.dtype} for samples of shape {tuple(x.shape)}."
        )
    return x0.to(x.dtype)


Evaluate = Callable[[Denoiser, Tensor, Tensor, Tensor, Context], Tensor]
"""The signature of `denoise` and of a capture's version of it."""


def check_timesteps(denoiser: Denoiser, timesteps: Tensor) -> None:
    """Raise ConfigError if a `NetworkDenoiser` does not take one of the timesteps (K,), on the CPU."""
    if isinstance(denoiser, NetworkDenoiser):
        denoiser.check_timesteps(timesteps)


def device_of(denoiser: Denoiser, device: torch.device | str | None = None) -> torch.device:
    """The device to sample on: a module's own; for a plain function `device`, or the CPU if that is None.

    Raises:
        ConfigError: if the denoiser is a module on another device than `device`.
    """
    asked = None if device is None else as_device(device)
    tensors = chain(denoiser.parameters(), denoiser.buffers()) if isinstance(denoiser, nn.Module) else ()
    found = next((tensor.device for tensor in tensors), None)
    if found is None:
        return asked or torch.device("cpu")
    if asked not in (None, found):
        raise ConfigError(f"device is {asked}, but the denoiser lies on {found}. Move one to the other.")
    return found


def check_finite(x: Tensor) -> Tensor:
    """Return the finished samples `x` (B, *E), or raise NumericalError if one is not finite.

    A NaN stays in its chain to the end, so checking the end finds a network that failed at any step.
    """
    bad = ~x.isfinite().reshape(len(x), -1).all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        raise NumericalError(
            f"The network returned NaN or infinity: samples {rows[:8]} of a batch of {len(x)} are not finite. "
            "Check its weights and the condition it was given."
        )
    return x
