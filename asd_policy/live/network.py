"""A live network as a sampler calls it: one tensor of conditions, and known coordinates filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asd_policy.errors import ConfigError

RANDOM_LAYERS = (
    nn.modules.dropout._DropoutNd,
    nn.modules.batchnorm._BatchNorm,
)
"""Layers that in training mode give another output at each call, or for each batch."""


class Known(NamedTuple):
    """Coordinates of the chunks that are given, not sampled (inpainting)."""

    data: Tensor  # (B, T, D), their values
    mask: Tensor  # (T, D) bool, True where a value is given

    @property
    def free(self) -> Tensor:
        """(F,) int64, the sampled coordinates of a flattened chunk."""
        return (~self.mask).flatten().nonzero().flatten()

    def take(self, x: Tensor) -> Tensor:
        """The sampled coordinates of x (B, ..., T, D): (B, ..., F)."""
        return x.flatten(-2)[..., self.free]

    def fill(self, x: Tensor) -> Tensor:
        """Sampled coordinates x (B, ..., F) and the known ones: (B, ..., T, D)."""
        between = x.shape[1:-1]
        data = self.data.to(x).flatten(1).view(len(x), *(1,) * len(between), -1)
        whole = data.expand(len(x), *between, -1).clone()
        whole[..., self.free] = x
        return whole.view(*x.shape[:-1], *self.mask.shape)


class LiveNetwork(nn.Module):
    """A library's network: x (N, *E), t (N,), cond (N, C) -> output (N, *E).

    E is (T, D), the shape of a chunk; with known coordinates (F,), its free ones.

    Args:
        net: called as net(x (N, T, D), t (N,), **conditions).
        shape: (T, D).
        sizes: the shape of each condition, without its first dimension, by the name of the network's parameter.
        free: (F,) int64, the sampled coordinates of a flattened chunk; None for all. Then `cond` has the known chunk
            (N, T * D) first.
    """

    free: Tensor | None

    def __init__(
        self, net: nn.Module, shape: tuple[int, int], sizes: Mapping[str, tuple[int, ...]], free: Tensor | None
    ):
        super().__init__()
        self.net = net
        self._shape, self._sizes = shape, dict(sizes)
        self._dtype = dtype_of(net)
        self.register_buffer("free", free, persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """The network's output, in float32."""
        free, first = self.free, 0
        if free is not None:
            assert cond is not None
            first = math.prod(self._shape)
            x = cond[:, :first].index_copy(1, free, x.to(cond.dtype))
        conditions = {}
        for name, shape in self._sizes.items():
            assert cond is not None
            conditions[name] = cond[:, first : first + math.prod(shape)].reshape(-1, *shape)
            first += math.prod(shape)
        output: Tensor = self.net(x.reshape(-1, *self._shape).to(self._dtype), t, **conditions).float()
        return output if free is None else output.flatten(1)[:, free]


def packed(conditions: Mapping[str, Tensor], known: Known | None) -> Tensor | None:
    """The condition (B, C) that a `LiveNetwork` takes apart; None if there is nothing to know."""
    parts = [value.flatten(1) for value in ([] if known is None else [known.data]) + list(conditions.values())]
    return torch.cat(parts, dim=1) if parts else None


def known_of(data: Tensor, mask: Tensor) -> Known | None:
    """The known coordinates of a library's condition_data and condition_mask (B, T, D); None if all are sampled.

    Raises:
        ConfigError: if the mask differs between the rows of the batch, or nothing is left to sample.
    """
    if not bool(mask.any()):
        return None
    if bool((mask != mask[:1]).any()):
        raise ConfigError("condition_mask differs between the rows of the batch; expected one mask for all of them.")
    if bool(mask.all()):
        raise ConfigError("condition_mask is True everywhere; expected something to sample.")
    return Known(data, mask[0])


def unwrapped(net: nn.Module) -> nn.Module:
    """The module inside torch.compile's and data-parallel wrappers.

    A window is a batch of another size than the library's own calls, for which their compiled code would be compiled
    anew. capture="compile" compiles the network for all sizes.
    """
    while True:
        inner = getattr(net, "_orig_mod", None)
        if inner is None and isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = net.module
        if not isinstance(inner, nn.Module):
            return net
        net = inner


def check_not_random(net: nn.Module) -> None:
    """Raise ConfigError if a layer of the network is in training mode and its output would be random."""
    for name, layer in net.named_modules():
        active = isinstance(layer, RANDOM_LAYERS) and layer.training and getattr(layer, "p", 1) > 0
        if active:
            raise ConfigError(
                f"The noise predictor's {name} ({type(layer).__name__}) is in training mode, so its output is random; "
                "call the policy's eval() first."
            )


def dtype_of(net: nn.Module) -> torch.dtype:
    """The type of the network's first floating-point weight."""
    found = (tensor.dtype for tensor in net.parameters() if tensor.is_floating_point())
    return next(found, torch.float32)
