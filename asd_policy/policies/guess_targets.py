"""The chunks that a first guess is fitted to, drawn by the policy itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from asd_policy.core import seeded_generator
from asd_policy.policies.diffusion import DiffusionPolicy

DDIM_STEPS = 10
"""Steps of the sampler of the chunks. It is not exact, but its mean is close, and a guess need not be exact."""
AT_ONCE = 128
"""Chunks drawn in a batch."""


def drawn_chunks(policy: DiffusionPolicy, cond: Tensor, seed: int, drawn: Callable[[int], object]) -> Tensor:
    """One chunk under each condition (N, D), normalised: (N, H, A), on the policy's device.

    Args:
        seed: the seed of the noise.
        drawn: called after each batch with the number of chunks drawn so far.

    Raises:
        NumericalError: if a chunk is not finite.
    """
    sampler = policy.with_sampler("ddim", num_steps=min(DDIM_STEPS, policy.schedule.num_steps)).sampler
    generator, chunks = seeded_generator(seed), []
    with torch.no_grad(), policy.model.evaluating():
        for part in cond.split(AT_ONCE):
            chunks.append(sampler.draw(len(part), part, generator).x)
            drawn(sum(map(len, chunks)))
    return torch.cat(chunks)
