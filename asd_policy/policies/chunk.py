"""A sampled chunk, and the warm start of the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import ConfigError


@dataclass(frozen=True)
class ChunkStats:
    """The cost of the last chunk, for B environments and K denoising steps."""

    latency: float  # seconds from observation to actions
    rounds: Tensor  # (B,) int64, sequential network calls; 0 if the environment continues an earlier chunk
    evaluations: Tensor  # (B,) int64, states that the network evaluated
    acceptance: Tensor  # (K,) float32, share of drafts kept at each step; 0 for a sampler without drafts


class Chunk(NamedTuple):
    """A chunk of actions for each of B environments."""

    actions: NDArray[np.float32]  # (B, Ta, A), or (B, H, A) for the whole horizon
    predictions: Tensor | None  # (B, K, H, A') the last prediction at each step, normalised; None if none is kept
    stats: ChunkStats


def check_warm(warm: Tensor | None, expected: tuple[int, ...]) -> None:
    """Raise ConfigError unless `warm` is None or predictions of the shape `expected`, (B, K, H, A)."""
    if warm is not None and (not isinstance(warm, Tensor) or warm.shape != expected):
        got = f"shape {tuple(warm.shape)}" if isinstance(warm, Tensor) else f"type {type(warm).__name__}"
        raise ConfigError(f"warm has {got}; expected the predictions of a chunk, a tensor {expected}, or None.")


def warm_start(predictions: Tensor | None, executed: int) -> Tensor | None:
    """Guesses of a chunk, from the predictions that an earlier chunk left: their mean over the K denoising steps.

    Each prediction contains some of the earlier tape's noise, of which the mean has less.

    Args:
        predictions: (B, K, H, A) or None. Rows of NaN have no earlier chunk.
        executed: the number of steps from the earlier chunk's observation to this one's, at least 0.

    Returns:
        (B, K, H, A), for each step the mean shifted by `executed` steps, with the last action repeated; zeros for rows
        without an earlier chunk. None if there are no predictions.
    """
    if predictions is None:
        return None
    executed = min(executed, predictions.shape[2])
    mean = predictions.mean(dim=1)
    shifted = torch.cat([mean[:, executed:], mean[:, -1:].expand(-1, executed, -1)], dim=1)
    return torch.where(shifted.isnan(), 0, shifted).unsqueeze(1).expand_as(predictions)
