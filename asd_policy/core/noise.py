"""The noise tape: all randomness of a sample, drawn before the first network call."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor

from asd_policy.core.checks import as_count, as_event_shape, as_seed
from asd_policy.core.transfer import to_device
from asd_policy.errors import ConfigError


def seeded_generator(seed: int | None) -> Generator:
    """A CPU generator. Equal seeds give equal noise; None seeds from the operating system.

    torch's CPU generator uses 32 bits of its seed, so a longer seed is hashed to 32 bits.

    Raises:
        ConfigError: unless the seed is None or an integer of at least 0; NumPy's integers are fine.
    """
    generator = Generator()
    if seed is None:
        generator.seed()
        return generator
    value = as_seed(seed)
    if value >= 2**32:
        digest = hashlib.sha256(value.to_bytes((value.bit_length() + 7) // 8, "little")).digest()
        value = int.from_bytes(digest[:4], "little")
    return generator.manual_seed(value)


class NoiseTape(NamedTuple):
    """The noise of B chains. Step k consumes row k in whichever round it is verified, which keeps every draft exact."""

    start: Tensor  # (B, *E) x_0, the pure noise that the chain starts from
    xi: Tensor  # (B, K, *E) standard normal increments, one row per step
    u: Tensor  # (B, K) uniform on [0, 1), one acceptance test per step

    @staticmethod
    def draw(
        batch_size: int,
        num_steps: int,
        event_shape: Sequence[int],
        generator: Noise = None,
        device: torch.device | str = "cpu",
    ) -> NoiseTape:
        """Draw a tape in float32.

        Args:
            event_shape: E.
            generator: one generator for the whole batch; or one for each sample, so that a sample's noise does not
                depend on its batch. None draws from torch's global generator. A NoiseTape is used as it is.

        Raises:
            ConfigError: unless `batch_size` and the event's sizes are at least 1, and the generators or tape fit.
        """
        event_shape = as_event_shape(event_shape)
        batch_size = as_count(batch_size, "batch_size")
        if isinstance(generator, NoiseTape):
            return generator._checked((batch_size, num_steps, *event_shape), device)
        if generator is None or isinstance(generator, Generator):
            return NoiseTape._draw(batch_size, num_steps, event_shape, generator, device)._on(device)
        if not isinstance(generator, Sequence) or not all(isinstance(one, Generator) for one in generator):
            raise ConfigError(f"generator is {generator!r:.80}; expected a torch.Generator, or one per sample.")
        if len(generator) != batch_size:
            raise ConfigError(f"Got {len(generator)} generators for batch_size {batch_size}; expected one per sample.")
        generators = cast("Sequence[Generator]", generator)
        tapes = [NoiseTape._draw(1, num_steps, event_shape, one, device) for one in generators]
        return NoiseTape(*(torch.cat(rows) for rows in zip(*tapes, strict=True)))._on(device)

    def _checked(self, shape: tuple[int, ...], device: torch.device | str) -> NoiseTape:
        """This tape on the device. Raises ConfigError unless `xi` has `shape`, (B, K, *E), and the others fit."""
        expected = (shape[0], *shape[2:]), shape, shape[:2]
        found = tuple(tuple(rows.shape) for rows in self)
        if found != expected:
            raise ConfigError(f"The noise tape has start, xi and u of shapes {found}; expected {expected}.")
        return NoiseTape(*(rows.to(torch.float32) for rows in self))._on(device)

    def _on(self, device: torch.device | str) -> NoiseTape:
        """This tape on the device, in one transfer from the host."""
        if self.start.device.type == "cpu":
            return NoiseTape(*to_device(self, torch.device(device)))
        return NoiseTape(*(rows.to(device) for rows in self))

    @staticmethod
    def _draw(
        batch_size: int,
        num_steps: int,
        event_shape: Sequence[int],
        generator: Generator | None,
        device: torch.device | str,
    ) -> NoiseTape:
        source = device if generator is None else generator.device  # a CPU generator may feed a GPU's sampler
        kind: dict[str, Any] = {"generator": generator, "device": source, "dtype": torch.float32}
        start = torch.randn(batch_size, *event_shape, **kind)
        xi = torch.randn(batch_size, num_steps, *event_shape, **kind)
        u = torch.rand(batch_size, num_steps, **kind)
        return NoiseTape(start, xi, u)


Noise = Generator | Sequence[Generator] | NoiseTape | None
"""The source of a batch's noise: see `NoiseTape.draw`."""
