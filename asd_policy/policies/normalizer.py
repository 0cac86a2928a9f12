"""Affine normalisation of observations and actions; its statistics are saved with the network's weights."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from asd_policy.errors import ConfigError
from asd_policy.policies.keyed import KeyedModules

# A dimension with a smaller range in the demonstrations counts as constant: stretching it to [-1, 1] would amplify the
# simulator's rounding errors.
CONSTANT_RANGE = 1e-4


class Affine(nn.Module):
    """y = (x - center) * scale + offset, and back, over the last dimension (D,).

    `center` avoids cancellation in x * scale + offset for large scale * center: other libraries scale a constant
    dimension by up to 1e8. In a dimension of scale 0, y is `offset` for every x, and x is `center` for every y. State
    dicts written before `center` existed lack it; it is then zero.
    """

    center: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("center", torch.zeros(dim, dtype=torch.float32, device="cpu"))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float32, device="cpu"))
        self.register_buffer("offset", torch.zeros(dim, dtype=torch.float32, device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) * self.scale + self.offset

    def inverse(self, y: Tensor) -> Tensor:
        return torch.where(self.scale == 0, self.center, (y - self.offset) / self.scale + self.center)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if f"{prefix}scale" in state_dict:
            state_dict.setdefault(f"{prefix}center", torch.zeros_like(state_dict[f"{prefix}scale"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LinearNormalizer(nn.Module):
    """One affine map per field: the observation keys and "action". The identity until fitted or loaded.

    An image's field has one entry per channel, for pixels from 0 to 255.

    Buffers are named `fields.<field>.center`, `.scale` and `.offset`, each of shape (D,); see `keyed.module_name`.
    """

    def __init__(self, dims: Mapping[str, int]):
        super().__init__()
        self.fields = KeyedModules({field: Affine(dim) for field, dim in dims.items()})

    def _field(self, field: str) -> Affine:
        if field not in self.fields:
            raise ConfigError(f"No field {field!r} in this normalizer; it has {', '.join(self.fields)}.")
        affine = self.fields[field]
        assert isinstance(affine, Affine)
        return affine

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Raise ConfigError unless each field exists and has this size. Another size might broadcast silently."""
        for field, size in sizes.items():
            got = len(self._field(field).scale)
            if got != size:
                raise ConfigError(f"The normalizer's field {field!r} has {got} dimensions; the policy's has {size}.")

    def fit(self, field: str, data: Tensor, ignored: Sequence[int] = ()) -> None:
        """Map the range of `data` (N, D) to [-1, 1] in each dimension; a constant dimension is only centred.

        The `ignored` dimensions are mapped to zero for every value, and back to zero.
        """
        affine = self._field(field)
        low, high = data.amin(dim=0), data.amax(dim=0)
        constant = high - low < CONSTANT_RANGE
        scale = torch.where(constant, 1.0, 2 / (high - low).clamp(min=CONSTANT_RANGE))
        scale[list(ignored)] = 0
        affine.center.zero_()
        affine.scale.copy_(scale)
        affine.offset.copy_(-(low + high) / 2 * scale)

    def normalize(self, field: str, x: Tensor) -> Tensor:
        """x (..., D) in its own units -> (..., D), demonstrations in [-1, 1]."""
        normalized: Tensor = self._field(field)(x)
        return normalized

    def unnormalize(self, field: str, y: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return self._field(field).inverse(y)

    def global_condition(
        self,
        obs: Mapping[str, Tensor],
        keys: Iterable[str],
        encoders: Mapping[str, Callable[[Tensor], Tensor]] | nn.ModuleDict | None = None,
        octaves: int = 0,
    ) -> Tensor:
        """The network's condition: the normalised observations, concatenated step by step.

        Args:
            obs: for each key the last To observations (N, To, D_key), oldest first; (N, To, H, W, C) for an image.
            keys: the keys in the policy's order.
            encoders: image encoders by key, (N, To, H, W, C) -> (N, To, D_key).
            octaves: number of sines and cosines of each value, besides the value.

        Returns:
            (N, To * G) with G the sum of the keys' sizes; with octaves (N, To * G * (1 + 2 * octaves)).
        """
        encoded = encoders or {}
        normalized = ((key, self.normalize(key, obs[key])) for key in keys)
        steps = torch.cat([encoded[key](x) if key in encoded else x for key, x in normalized], dim=-1)
        return rearrange(with_octaves(steps, octaves), "n t g -> n (t g)")


def with_octaves(x: Tensor, octaves: int) -> Tensor:
    """x (..., G) in [-1, 1] -> (..., G * (1 + 2 * octaves)): x, then sin(2^k pi x) and cos(2^k pi x) of each octave k.

    Networks are slow to learn functions that change within a small part of their input's range, such as the motion a
    millimetre from a hole. These features stretch such a part (Tancik et al. 2020, https://arxiv.org/abs/2006.10739).
    """
    phases = [2.0**k * math.pi * x for k in range(octaves)]
    return torch.cat([x, *(wave(phase) for phase in phases for wave in (torch.sin, torch.cos))], dim=-1)
