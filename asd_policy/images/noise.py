"""The noise tape of a pipeline, from the same draws as in diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from asd_policy.core import NoiseTape
from asd_policy.errors import ConfigError

Generators = Generator | Sequence[Generator] | None


def diffusers_noise(
    batch_size: int,
    num_steps: int,
    event_shape: Sequence[int],
    generator: Generators,
    device: torch.device,
    start: Tensor | None = None,
) -> NoiseTape:
    """A tape whose start and rows equal the draws of a diffusers pipeline from `generator`, in float32.

    diffusers draws the start and each step's noise separately. One draw of the total size gives other numbers, unless a
    row has a multiple of 16 values.

    Args:
        generator: one for the batch, one per image, or None for torch's global generator.
        start: (B, *E) the chain's start; None draws it.

    Raises:
        ConfigError: if `generator` is none of these, or a list whose length is not `batch_size`.
    """
    if generator is None or isinstance(generator, Generator):
        rows, generators = batch_size, [generator]
    else:
        rows, generators = 1, _one_each(generator, batch_size)
    tapes = [_draw(rows, num_steps, event_shape, one, device, start is None) for one in generators]
    drawn, u = (torch.cat(parts).to(device) for parts in zip(*tapes, strict=True))
    return NoiseTape(drawn[:, 0], drawn[:, 1:], u) if start is None else NoiseTape(start, drawn, u)


def _one_each(generators: object, batch_size: int) -> list[Generator | None]:
    if not isinstance(generators, list | tuple) or not all(isinstance(one, Generator) for one in generators):
        raise ConfigError(f"generator is {generators!r}; expected a torch.Generator, or a list with one per image.")
    if len(generators) != batch_size:
        raise ConfigError(f"Got {len(generators)} generators for {batch_size} images; expected one per image.")
    return list(generators)


def _draw(
    rows: int,
    num_steps: int,
    event_shape: Sequence[int],
    generator: Generator | None,
    device: torch.device,
    with_start: bool,
) -> tuple[Tensor, Tensor]:
    """Normal noise (rows, K, *E), or (rows, 1 + K, *E) with the start, and uniform (rows, K)."""
    source = device if generator is None else generator.device  # a CPU generator may feed a GPU's sampler
    make: dict[str, Any] = {"generator": generator, "device": source, "dtype": torch.float32}
    normal = torch.empty(rows, num_steps + with_start, *event_shape, device=source, dtype=torch.float32)
    for row in normal.unbind(dim=1):
        row.copy_(torch.randn(rows, *event_shape, **make))
    return normal, torch.rand(rows, num_steps, **make)
