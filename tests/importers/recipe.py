"""Weights that anybody can make again: the goldens of big networks keep names and shapes instead of tensors.

The values come from uniform draws, not normal ones: a logarithm or a cosine may differ in its last bit from one machine
or version to the next, these may not.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CONSTANTS = ("pos_grid", "pos_x", "pos_y", "temperature")
"""The last part of the names of a spatial softmax's buffers, which are no weights."""

KEPT = "kept."
"""The prefix, in a golden file, of tensors that are no weights and are kept as they are."""


def made(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A tensor for each name, which depends on nothing but that name and its shape; activations stay of order one."""
    return {name: _made(name, tuple(shape)) for name, shape in shapes.items()}


def _made(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return uniform + 0.5
    values = math.sqrt(3) * (2 * uniform - 1)  # of mean zero and variance one
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """What `made` needs to make tensors like these."""
    return {name: list(value.shape) for name, value in state.items()}


def aliases_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names of tensors that an earlier name has already: a module can be reached in two ways."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(value.data_ptr(), name) for name, value in state.items() if value.numel()}
    return {name: other for name, other in names.items() if name != other}


def restored(
    shapes: Mapping[str, Sequence[int]], kept: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> dict[str, Tensor]:
    """A whole state dict in its order: what was kept, weights made anew, and each tensor under all of its names."""
    tensors = made({name: shape for name, shape in shapes.items() if name not in kept and name not in aliases})
    tensors |= kept
    return {name: tensors[aliases.get(name, name)] for name in shapes}


def kept_in(golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in a golden file that are no weights, under the names they have in the state dict."""
    return {name.removeprefix(KEPT): value for name, value in golden.items() if name.startswith(KEPT)}
