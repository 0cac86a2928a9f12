"""The running episodes of B environments: their last observations and planned actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.core import seeded_generator
from asd_policy.errors import ConfigError


class History:
    """The last To observations of each environment. An episode's first observation fills it."""

    def __init__(self, batch_size: int, length: int):
        self._length = length
        self._steps: list[Mapping[str, Tensor]] = []
        self._begins = np.ones(batch_size, dtype=bool)

    def begin(self, rows: NDArray[np.bool_]) -> None:
        """Forget the observations of the masked rows (B,): their next observation is an episode's first."""
        self._begins = self._begins | rows

    def followed_by(self, obs: Mapping[str, Tensor]) -> History:
        """A new history with one more observation of every environment, (B, ...) for each key."""
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


class ActionPlan:
    """Planned actions. Each environment may be at another point of its chunk."""

    def __init__(self, batch_size: int, length: int, action_dim: int):
        self._actions = np.zeros((batch_size, length, action_dim), dtype=np.float32)
        self._next = np.full(batch_size, length)

    @property
    def due(self) -> NDArray[np.intp]:
        """(N,) the rows without planned actions."""
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
        actions: NDArray[np.float32] = self._actions[np.arange(len(self._next)), self._next]
        self._next += 1
        return actions


class Episodes:
    """The running episodes: a generator, a history and a plan for each of B environments.

    Args:
        generators: one for each environment; none before the first reset.
        batched: whether observations and actions have an axis of environments.
        n_obs_steps: To, the length of the history.
        n_action_steps: Ta, the length of a plan.
        action_dim: the size of the environment's action.

    Attributes:
        predictions: (B, K, H, A) or None, what each environment's last chunk left for the next one's warm start. Rows
            of NaN have no last chunk.
    """

    def __init__(
        self,
        generators: list[torch.Generator],
        batched: bool,
        n_obs_steps: int,
        n_action_steps: int,
        action_dim: int,
    ):
        self.generators, self.batched = generators, batched
        self.history = History(len(generators), n_obs_steps)
        self.plan = ActionPlan(len(generators), n_action_steps, action_dim)
        self.predictions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.generators)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the generators' states as NumPy arrays.

        Tensors made here would be freed before a spawned process can share their memory.
        """
        return self.__dict__ | {"generators": [generator.get_state().numpy() for generator in self.generators]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generators = [torch.Generator("cpu") for _ in state["generators"]]
        for generator, saved in zip(generators, state["generators"], strict=True):
            generator.set_state(torch.from_numpy(saved))
        self.__dict__ = state | {"generators": generators}

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading dimensions of observations and actions: (B,), or () for one environment."""
        return (len(self),) if self.batched else ()

    def begin_rows(self, rows_begun: Any, seed: int | None, seeds: Sequence[int] | None) -> None:
        """Begin an episode in the environments of a mask (B,) of bools.

        Args:
            rows_begun: the mask.
            seed: must be None, because there is a batch.
            seeds: one for each of these environments, or for each of the B; None continues their generators.

        Raises:
            ConfigError: on a mask or seeds that do not fit. Nothing changes then.
        """
        mask = as_mask(rows_begun)
        if not self.batched or seed is not None or mask.dtype != bool or mask.shape != (len(self),):
            raise ConfigError(
                f"Got seed={seed} and mask {mask} after a reset of {len(self)} environments; expected a bool for each "
                "of them, after reset(seeds=...)."
            )
        rows = np.flatnonzero(mask)
        if seeds is not None:
            if len(seeds) not in (len(rows), len(self)):
                raise ConfigError(
                    f"Got {len(seeds)} seeds for {len(rows)} of {len(self)} environments; expected one each."
                )
            chosen = seeds if len(seeds) == len(rows) else [seeds[row] for row in rows]
            for row, generator in zip(rows, [seeded_generator(value) for value in chosen], strict=True):
                self.generators[row] = generator
        self.history.begin(mask)
        self.plan.forget(mask)
        if self.predictions is not None:
            index = torch.from_numpy(rows).to(self.predictions.device)
            self.predictions = with_rows(self.predictions, index, torch.nan)


def _replaced(old: Tensor, new: Tensor, rows: Tensor) -> Tensor:
    """`new` in the rows (B,), `old` elsewhere: (B, ...)."""
    return torch.where(rows.view(-1, *(1,) * (old.ndim - 1)), new, old)


def as_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list, in order. Raises ConfigError on a collection without order."""
    if isinstance(seeds, Mapping | Set | str | bytes) or not isinstance(seeds, Iterable):
        raise ConfigError(f"seeds is {seeds!r:.80}; expected a sequence of integers, one for each environment.")
    try:
        return list(seeds)
    except TypeError as error:  # a 0-dimensional array
        raise ConfigError(f"seeds is {seeds!r:.80}; expected a sequence of integers: {error}.") from error


def as_mask(mask: Any) -> NDArray[Any]:
    """The mask as a NumPy array. Raises ConfigError if it cannot be one."""
    try:
        return np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"mask is {mask!r:.80}; expected a bool for each environment: {error}.") from error


def with_rows(x: Tensor, rows: Tensor | slice, value: Tensor | float) -> Tensor:
    """A copy of x (B, ...) with `value` in the `rows` (N,). In-place changes fail on tensors of inference mode."""
    changed = x.clone()
    changed[rows] = value
    return changed


def filled_up(x: Tensor, missing: int) -> Tensor:
    """x (N, ...) padded with copies of its first row to (N + missing, ...)."""
    return torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
