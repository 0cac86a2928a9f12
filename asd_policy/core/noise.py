"""The noise tape: all randomness of a sample, drawn before the first network call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from asd_policy.errors import ConfigError


class NoiseTape(NamedTuple):
    """Step k always consumes row k, in whichever round it is verified: that is what keeps every draft exact."""

    start: Tensor  # (B, *E) x_0, the pure noise that the chain starts from
    xi: Tensor  # (B, K, *E) standard normal increments, one row per step
    u: Tensor  # (B, K) uniform on [0, 1), one acceptance test per step

    @staticmethod
    def draw(
        batch_size: int,
        num_steps: int,
        event_shape: Sequence[int],
        generator: Generator | Sequence[Generator] | NoiseTape | None = None,
        device: torch.device | str = "cpu",
    ) -> NoiseTape:
        """A fresh tape in float32.

        Args:
            generator: one generator for the whole batch, or one per sample: then a sample's noise does not depend on
                how many are drawn with it. None draws from torch's global generator. A tape is returned as it is.

        Raises:
            ConfigError: unless `batch_size` >= 1 and the number of generators, or the tape, fits it.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected at least 1.")
        if isinstance(generator, NoiseTape):
            expected = (batch_size, num_steps, *event_shape)
            if generator.xi.shape != expected:
                raise ConfigError(f"The noise tape has shape {tuple(generator.xi.shape)}; expected {expected}.")
            return generator
        if generator is None or isinstance(generator, Generator):
            return NoiseTape._draw(batch_size, num_steps, event_shape, generator, device)
        if len(generator) != batch_size:
            raise ConfigError(f"Got {len(generator)} generators for batch_size {batch_size}; expected one per sample.")
        tapes = [NoiseTape._draw(1, num_steps, event_shape, g, device) for g in generator]
        return NoiseTape(*(torch.cat(rows) for rows in zip(*tapes, strict=True)))

    @staticmethod
    def _draw(
        batch_size: int,
        num_steps: int,
        event_shape: Sequence[int],
        generator: Generator | None,
        device: torch.device | str,
    ) -> NoiseTape:
        source = device if generator is None else generator.device  # a CPU generator may feed a GPU's sampler
        start = torch.randn(batch_size, *event_shape, generator=generator, device=source)
        xi = torch.randn(batch_size, num_steps, *event_shape, generator=generator, device=source)
        u = torch.rand(batch_size, num_steps, generator=generator, device=source)
        return NoiseTape(start.to(device), xi.to(device), u.to(device))
