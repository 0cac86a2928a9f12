"""One convention for every network: (x, t, cond) -> prediction of the clean sample.

Whatever a network was trained to predict is converted here, once, at the edge (DDPM eq. 15; v as in Salimans & Ho 2022,
https://arxiv.org/abs/2202.00512). All three conversions are affine in the noisy sample and the network's output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from asd_policy.core.checks import as_device, is_number
from asd_policy.core.schedule import Schedule
from asd_policy.errors import ConfigError, NumericalError

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Denoiser(Protocol):
    """Any callable that predicts the clean sample, clipping included."""

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """x (N, *E) noisy samples, t (N,) int64 training timesteps, cond (N, ...) or None -> x0 (N, *E)."""
        ...


@runtime_checkable
class PreparedNetwork(Protocol):
    """A network that computes what does not depend on the noisy sample once for a batch of B samples and K steps."""

    def prepare(self, timesteps: Tensor, cond: Tensor) -> Any:
        """timesteps (K,) int64, cond (B, ...) -> a tensor, or a NamedTuple of tensors."""
        ...

    def predict(self, x: Tensor, step: Tensor, row: Tensor, prepared: Any) -> Tensor:
        """What the network returns for x (N, *E), timesteps[step], cond[row]; step and row (N,) int64."""
        ...


def clipped(x0: Tensor, clip: float | None) -> Tensor:
    """Predictions x0 in [-clip, clip]; None leaves them.

    Infinity stays infinity: were it clipped to a number, nobody would learn that the network had failed.
    """
    return x0 if clip is None else torch.where(x0.isfinite(), x0.clamp(-clip, clip), x0)


class AffineDenoiser(nn.Module):
    """x0 = clip(x_weight[t] x + net_weight[t] net(x, t, cond))."""

    x_weight: Tensor
    net_weight: Tensor

    def __init__(self, net: Network, x_weight: Tensor, net_weight: Tensor, clip: float | None):
        super().__init__()
        if clip is not None and not (is_number(clip) and 0 < clip < math.inf):
            raise ConfigError(f"clip is {clip!r}; expected a positive number, or None for predictions without bounds.")
        self.net = net
        self.clip = clip
        self.register_buffer("x_weight", x_weight.float(), persistent=False)
        self.register_buffer("net_weight", net_weight.float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (N, *E), t (N,) int64, cond (N, ...) or None -> x0 (N, *E)."""
        return self.to_clean(x, t, self.net(x, t, cond))

    def to_clean(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The network's output (N, *E) at x (N, *E), t (N,) as a prediction of the clean sample (N, *E)."""
        per_sample = (-1,) + (1,) * (x.ndim - 1)
        x0 = self.x_weight[t].view(per_sample) * x + self.net_weight[t].view(per_sample) * output
        return clipped(x0, self.clip)

    def without_clip(self) -> Self:
        """The same network, its predictions not clipped."""
        denoiser = copy.copy(self)
        denoiser.clip = None
        return denoiser


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
"""By what a network predicts, as diffusers' `prediction_type` names it."""


class Context(NamedTuple):
    """What a denoiser is told about a batch of B samples, for all K steps."""

    timesteps: Tensor  # (K,) int64
    cond: Tensor | None  # (B, ...)
    prepared: Any = None  # what the network has made of the two, if it can


def can_prepare(net: Network) -> bool:
    """Whether `prepare` and `predict` may stand in for calling the network.

    Not where its call does more: a subclass or a wrapper with a `forward` of its own, or hooks on the call.
    """
    if not isinstance(net, PreparedNetwork) or not isinstance(net, nn.Module):
        return isinstance(net, PreparedNetwork)
    if "forward" in vars(net) or net._forward_hooks or net._forward_pre_hooks:
        return False
    defined = {name: next((c for c in type(net).__mro__ if name in vars(c)), None) for name in ("forward", "predict")}
    forward, predict = defined["forward"], defined["predict"]
    return forward is not None and predict is not None and issubclass(predict, forward)


def prepare(denoiser: Denoiser, timesteps: Tensor, cond: Tensor | None) -> Context:
    """Compute once what `denoise` would repeat at every step: timesteps (K,) int64, cond (B, ...) or None."""
    if cond is not None and isinstance(denoiser, AffineDenoiser) and can_prepare(denoiser.net):
        assert isinstance(denoiser.net, PreparedNetwork)
        return Context(timesteps, cond, denoiser.net.prepare(timesteps, cond))
    return Context(timesteps, cond)


def denoise(denoiser: Denoiser, x: Tensor, step: Tensor, row: Tensor, context: Context) -> Tensor:
    """Predict the clean samples of x (N, *E), each at its step (N,) int64 and of its row (N,) int64 of the batch.

    Raises:
        ConfigError: if the network returned another shape.
    """
    timesteps, cond, prepared = context
    if prepared is None:
        x0 = denoiser(x, timesteps[step], None if cond is None else cond[row])
    else:
        assert isinstance(denoiser, AffineDenoiser)
        assert isinstance(denoiser.net, PreparedNetwork)
        x0 = denoiser.to_clean(x, timesteps[step], denoiser.net.predict(x, step, row, prepared))
    if not isinstance(x0, Tensor):
        raise ConfigError(f"The denoiser returned a {type(x0).__name__}; expected a tensor of shape {tuple(x.shape)}.")
    if x0.shape != x.shape or x0.is_complex():
        raise ConfigError(
            f"The denoiser returned shape {tuple(x0.shape)} and type {x0.dtype} for samples of shape {tuple(x.shape)}."
        )
    return x0.to(x.dtype)


Evaluate = Callable[[Denoiser, Tensor, Tensor, Tensor, Context], Tensor]
"""`denoise`, or what a capture has made of it."""


def device_of(denoiser: Denoiser, device: torch.device | str | None = None) -> torch.device:
    """Where to sample: at a denoiser's parameters or buffers; for a plain function at `device`, else on the CPU.

    Raises:
        ConfigError: if the denoiser is a module that lies elsewhere than at `device`.
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
    """Return the finished samples `x` (B, *E), or raise NumericalError when one is not finite.

    NaN is absorbing in the chain, so one look at its end sees a network that failed at any step of it.
    """
    bad = ~x.isfinite().reshape(len(x), -1).all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        raise NumericalError(
            f"The network returned NaN or infinity: samples {rows[:8]} of a batch of {len(x)} are not finite. "
            "Check its weights and the condition it was given."
        )
    return x
