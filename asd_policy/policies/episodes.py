"""What a policy remembers of B environments: their last observations, and the actions planned for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import ConfigError


class History:
    """The last To observations of each environment; an episode's first one fills it."""

    def __init__(self, batch_size: int, length: int):
        self._length = length
        self._steps: list[Mapping[str, Tensor]] = []
        self._begins = np.ones(batch_size, dtype=bool)

    def begin(self, rows: NDArray[np.bool_]) -> None:
        """Forget what was observed in the rows (B,): their next observation is an episode's first."""
        self._begins = self._begins | rows

    def followed_by(self, obs: Mapping[str, Tensor]) -> History:
        """The history after one more observation of every environment, (B, ...) for each key. This one stays."""
        steps = self._steps or [obs] * self._length
        if self._begins.any():
            begins = torch.from_numpy(self._begins)
            steps = [{key: _replaced(step[key], obs[key], begins) for key in obs} for step in steps]
        after = History(len(self._begins), self._length)
        after._steps = [*steps[1:], obs]
        after._begins = np.zeros_like(self._begins)
        return after

    def of(self, rows: NDArray[np.intp]) -> list[dict[str, Tensor]]:
        """The observations of the rows (N,), oldest first: (N, ...) for each key."""
        index = torch.from_numpy(rows)
        return [{key: value[index] for key, value in step.items()} for step in self._steps]


class Plan:
    """Actions that are still to be executed; each environment may be at another point of its chunk."""

    def __init__(self, batch_size: int, length: int, action_dim: int):
        self._actions = np.zeros((batch_size, length, action_dim), dtype=np.float32)
        self._next = np.full(batch_size, length)

    @property
    def due(self) -> NDArray[np.intp]:
        """The rows that have no action left."""
        return np.flatnonzero(self._next == self._actions.shape[1])

    def forget(self, rows: NDArray[np.bool_]) -> None:
        """Drop the actions of the rows (B,)."""
        self._next[rows] = self._actions.shape[1]

    def fill(self, rows: NDArray[np.intp], actions: NDArray[np.float32]) -> None:
        """Plan actions (N, Ta, A) for the rows (N,)."""
        self._actions[rows] = actions
        self._next[rows] = 0

    def pop(self) -> NDArray[np.float32]:
        """The next action of every environment, (B, A)."""
        actions = self._actions[np.arange(len(self._next)), self._next]
        self._next += 1
        return actions


def _replaced(old: Tensor, new: Tensor, rows: Tensor) -> Tensor:
    """`new` in the rows (B,), `old` elsewhere: (B, ...)."""
    return torch.where(rows.view(-1, *(1,) * (old.ndim - 1)), new, old)


def as_seeds(seeds: Iterable[int]) -> list[int]:
    """A seed for each environment, in their order. Raises ConfigError on anything without an order."""
    if isinstance(seeds, Mapping | Set | str | bytes) or not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds is {seeds!r:.80}; expected a sequence of integers, one for each environment.")
    try:
        return list(seeds)
    except TypeError as error:  # an array of no dimensions
        raise ConfigError(f"seeds is {seeds!r:.80}; expected a sequence of integers: {error}.") from error


def as_mask(mask: Any) -> NDArray[Any]:
    """The mask as an array, wherever it lies. Raises ConfigError if it is none."""
    try:
        return np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"mask is {mask!r:.80}; expected a bool for each environment: {error}.") from error


def with_rows(x: Tensor, rows: Tensor | slice, value: Tensor | float) -> Tensor:
    """A copy of x (B, ...) with `value` in the `rows` (N,). In place would fail where x comes from inference mode."""
    changed = x.clone()
    changed[rows] = value
    return changed


def filled_up(x: Tensor, missing: int) -> Tensor:
    """x (N, ...) and copies of its first row, (N + missing, ...)."""
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def shifted(predictions: Tensor, steps: int) -> Tensor:
    """A chunk's predictions (B, K, H, A) as guesses of the chunk `steps` later; its last action repeats."""
    return torch.cat([predictions[:, :, steps:], predictions[:, :, -1:].expand(-1, -1, steps, -1)], dim=2)
