"""What a policy remembers of B environments: their last observations, and the actions planned for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class History:
    """The last To observations of each environment; an episode's first one fills it."""

    def __init__(self, batch_size: int, length: int):
        self._steps: deque[Mapping[str, Tensor]] = deque(maxlen=length)
        self._begins = np.ones(batch_size, dtype=bool)

    def begin(self, rows: NDArray[np.bool_]) -> None:
        """Forget what was observed in the rows (B,): their next observation is an episode's first."""
        self._begins |= rows

    def append(self, obs: Mapping[str, Tensor]) -> None:
        """Add an observation of every environment, (B, ...) for each key."""
        length = self._steps.maxlen
        assert length is not None
        if not self._steps:
            self._steps.extend([obs] * length)
        elif self._begins.any():
            begins = torch.from_numpy(self._begins)
            self._steps.extend([{key: _replaced(step[key], obs[key], begins) for key in obs} for step in self._steps])
        self._steps.append(obs)
        self._begins = np.zeros_like(self._begins)

    def of(self, rows: NDArray[np.intp]) -> list[dict[str, Tensor]]:
        """The observations of the rows (N,), oldest first: (N, ...) for each key."""
        index = torch.from_numpy(rows)
        return [{key: value[index.to(value.device)] for key, value in step.items()} for step in self._steps]


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
    return torch.where(rows.to(old.device).view(-1, *(1,) * (old.ndim - 1)), new, old)
