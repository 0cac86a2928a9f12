"""Checks normalisation statistics of other libraries, and converts them to scale, offset and center."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError

TINY = 1e-30
"""Spreads below this count as zero, because dividing by them overflows float32."""


class Statistics(NamedTuple):
    """The normalisation y = (x - center) * scale + offset and its inverse, each (D,) float64.

    Scale 0 means that x is always the center.
    """

    scale: Tensor
    offset: Tensor
    center: Tensor

    @classmethod
    def identity(cls, dim: int) -> Statistics:
        """The identity."""
        return cls(torch.ones(dim), torch.zeros(dim), torch.zeros(dim))

    @classmethod
    def joined(cls, pieces: list[Statistics]) -> Statistics:
        """Concatenate several normalisations."""
        return cls(*(torch.cat([value.double() for value in values]) for values in zip(*pieces, strict=True)))


def numbers(value: Any, feature: str, where: str) -> Tensor:
    """A tensor or nested lists of numbers as a float64 tensor.

    Raises:
        CheckpointError: if the value is anything else.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"they are {tensor.dtype}")
        return tensor.double()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}: the statistics of {feature!r} are not numbers: {error!s:.200}") from error


def check_finite(values: Mapping[str, Tensor], feature: str, where: str) -> None:
    """Raise CheckpointError naming the first statistic that is not finite, if any."""
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} of {feature!r} is not finite ({value.flatten()[:8].tolist()}), as if it was never "
                "computed. Compute them from the training data and save the policy again."
            )


def check_spread(spread: Tensor, name: str, feature: str, where: str, may_be_zero: bool) -> None:
    """Raise CheckpointError if a spread is negative, or zero though it must not be."""
    wrong = spread < 0 if may_be_zero else spread < TINY
    if bool(wrong.any()):
        raise CheckpointError(
            f"{where}: {name} of {feature!r} is {float(spread[wrong][0]):g} in entry {int(wrong.nonzero()[0, 0])}; "
            f"expected {'0 or more' if may_be_zero else 'more than 0'}."
        )


def reciprocal(spread: Tensor) -> Tensor:
    """1 / spread, and 0 where the spread is zero."""
    return torch.where(spread < TINY, 0.0, 1 / spread.clamp(min=TINY))
