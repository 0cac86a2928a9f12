"""The checks that every demonstration passes before it is stored or used for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import ConfigError, DataError

CHANNELS = (1, 3, 4)
ACTION_KINDS = {"delta": "deltas in [-1, 1]", "pose": "target poses", "other": "neither deltas nor poses of the hand"}
"""Kind of actions -> its description. Only deltas have a range."""

LARGEST_DELTA = 1.0 + 1e-5  # 1 plus rounding errors of float32
MAX_KEYS = 1000
MAX_NAME = 200  # longer names do not fit into file names


@dataclass(frozen=True)
class Demonstration:
    """One demonstration of T steps.

    Attributes:
        seed: seed of the environment's reset, or the number of an imported demonstration.
        obs: (T, D) float32 or (T, H, W, C) uint8 per key; a row is the observation before the action of its step.
            Images may be `LazyImages`.
        action: (T, A) float32, the expert's actions.
        executed_action: (T, A) float32, the actions that the environment executed.
        steps_to_success: steps until the first success.
    """

    seed: int
    obs: Mapping[str, NDArray[Any] | LazyImages]
    action: NDArray[np.float32]
    executed_action: NDArray[np.float32]
    steps_to_success: int


@dataclass(frozen=True)
class Gate:
    """The checks of one data set.

    Attributes:
        source: the name of the data set in error messages.
        obs_shapes: the shape of one step of each observation: (D,) or, for images, (H, W, C).
        action_dim: A.
        action_kind: a key of `ACTION_KINDS`.

    Raises:
        DataError: if a shape is neither a vector's nor an image's, a key cannot be a file name, or the kind of actions
            is unknown.
    """

    source: str
    obs_shapes: Mapping[str, tuple[int, ...]]
    action_dim: int
    action_kind: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.obs_shapes) <= MAX_KEYS or self.action_dim < 1:
            raise DataError(
                f"{self.source} has {len(self.obs_shapes)} observation keys and actions of {self.action_dim} entries; "
                f"expected 1 to {MAX_KEYS} keys and at least 1 entry."
            )
        if not isinstance(self.action_kind, str) or self.action_kind not in ACTION_KINDS:
            raise DataError(
                f"{self.source}: its action_kind is {str(self.action_kind)[:MAX_NAME]!r}; expected one of "
                f"{', '.join(ACTION_KINDS)}."
            )
        for key, shape in self.obs_shapes.items():
            check_key(self.source, key)
            check_step_shape(self.source, key, shape)
            parents = {key[:end] for end, letter in enumerate(key) if letter == "/"}
            if clash := parents & {*self.obs_shapes}:
                raise DataError(f"{self.source} has observations {clash.pop()!r} and {key!r}; expected distinct names.")

    def admit(self, episode: Demonstration, name: str) -> Demonstration:
        """The demonstration as float32 and uint8 arrays.

        Raises:
            DataError: naming the demonstration (`name`), the key and the step that does not fit.
        """
        where = f"{self.source}: {name}"
        if set(episode.obs) != set(self.obs_shapes):
            raise DataError(
                f"{where} has the observation keys {sorted(episode.obs)}; expected {sorted(self.obs_shapes)}."
            )
        action = as_rows(where, "action", episode.action, (self.action_dim,))
        if len(action) == 0:
            raise DataError(f"{where} has no steps; expected at least one. Remove it.")
        if self.action_kind == "delta":
            check_deltas(where, action)
        same = episode.executed_action is episode.action
        executed = action if same else self._rows(where, "executed_action", episode.executed_action, len(action))
        obs = {key: self._rows(where, key, episode.obs[key], len(action)) for key in self.obs_shapes}
        numbers = int(episode.seed), int(episode.steps_to_success)
        if any(abs(number) >= 2**63 for number in numbers):
            raise DataError(f"{where} has seed and steps to success {numbers}; expected numbers of 64 bits.")
        return dataclasses.replace(episode, obs=obs, action=action, executed_action=executed)

    def _rows(self, where: str, key: str, values: Any, steps: int) -> Any:
        shape = self.obs_shapes.get(key, (self.action_dim,))
        lazy = isinstance(values, LazyImages) and values.shape[1:] == shape
        rows = values if lazy else as_rows(where, key, values, shape)
        if len(rows) != steps:
            raise DataError(f"{where} has {steps} actions but {len(rows)} steps of {key!r}; expected as many.")
        return rows


def check_key(source: str, key: Any) -> None:
    """Raise DataError unless an observation key is a valid array name in every format."""
    parts = key.split("/") if isinstance(key, str) else [""]
    if not all(parts) or {".", ".."} & {*parts} or not key.isprintable() or "\\" in key or len(key) > MAX_NAME:
        raise DataError(f"{source} has the observation key {str(key)[:MAX_NAME]!r}; expected a printable name.")


def check_step_shape(source: str, key: str, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the shape of one step is a vector's or an image's."""
    if all(size > 0 for size in shape):
        if len(shape) == 1 or (len(shape) == 3 and shape[2] in CHANNELS):
            return
        if len(shape) == 3 and shape[0] in CHANNELS:
            raise DataError(
                f"{source}: observation {key!r} has steps of shape {shape}, an image whose channels come first; "
                "expected (height, width, channels). Convert it: np.moveaxis(images, 1, -1)."
            )
    raise DataError(
        f"{source}: observation {key!r} has steps of shape {shape}; expected (D,), or of images (height, width, "
        f"channels) with {', '.join(map(str, CHANNELS))} channels."
    )


def check_dtype(where: str, key: str, dtype: np.dtype[Any], step_shape: tuple[int, ...]) -> None:
    """Raise DataError unless the type is a type of real numbers, or uint8 for images."""
    image = len(step_shape) == 3
    if dtype != np.uint8 if image else dtype.kind not in "fiub":
        expected = "uint8 from 0 to 255" if image else "real numbers"
        raise DataError(f"{where}: {key!r} has type {dtype}; expected {expected}. Convert it.")


def as_rows(where: str, key: str, values: Any, step_shape: tuple[int, ...]) -> NDArray[Any]:
    """Values (T, *step_shape), or (T,) for steps of one entry, as float32, or uint8 for images.

    Raises:
        DataError: on another shape or type, or on numbers that are not finite in float32.
    """
    array: NDArray[Any] = np.asarray(values)
    check_dtype(where, key, array.dtype, step_shape)
    if array.ndim == 1 and step_shape == (1,):
        array = array[:, None]
    if array.ndim == 0 or array.shape[1:] != step_shape:
        raise DataError(f"{where}: {key!r} has shape {array.shape}; expected (steps, {_sizes(step_shape)}).")
    if len(step_shape) == 3:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond float32 become inf, refused below
        rows: NDArray[np.float32] = array.astype(np.float32, copy=False)
    if (step := first_not_finite(rows)) is not None:
        raise DataError(
            f"{where}: {key!r} holds {_odd(array[step], rows[step])} at step {step}; expected finite numbers of "
            "float32. Remove the demonstration, or repair it."
        )
    return rows


def first_not_finite(rows: NDArray[Any]) -> int | None:
    """The first step of rows (T, D) with NaN or infinity; None if there is none."""
    finite = np.isfinite(rows)
    return None if finite.all() else int(np.flatnonzero(~finite.all(axis=1))[0])


def check_deltas(where: str, actions: NDArray[np.float32]) -> None:
    """Raise DataError unless actions (T, A) are in [-1, 1]."""
    step = first_beyond(actions)
    if step is not None:
        raise DataError(
            f"{where}: its actions reach {largest_text(actions)}; expected deltas in [-1, 1]. The first beyond is "
            f"{largest_text(actions[step])} at step {step} of 'action'. Clip them (clip_actions=True, --clip-actions)."
        )


def first_beyond(actions: NDArray[np.float32]) -> int | None:
    """The first step of actions (T, A) outside [-1, 1]; None if there is none."""
    beyond = np.abs(actions) > LARGEST_DELTA
    return int(np.flatnonzero(beyond.any(axis=1))[0]) if beyond.any() else None


def check_clippable(where: str, action_kind: str) -> None:
    """Raise ConfigError unless actions of this kind have a range to clip to."""
    if action_kind != "delta":
        raise ConfigError(
            f"{where}: clip_actions is for deltas, but its actions are {ACTION_KINDS[action_kind]}. Leave it out."
        )


def clip_deltas(where: str, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], str | None]:
    """Actions (T, A) clipped to [-1, 1], and a note if any were outside."""
    if first_beyond(actions) is None:
        return actions.clip(-1, 1), None
    beyond = int((np.abs(actions) > 1).sum())
    note = f"{where}: its actions reach {largest_text(actions)}; {beyond} numbers were clipped to [-1, 1]."
    return actions.clip(-1, 1), note


def largest_text(actions: NDArray[np.float32]) -> str:
    """The entry of largest magnitude with all digits of float32, because 1.00004 must not print as 1."""
    flat = np.asarray(actions, np.float32).ravel()
    return np.format_float_positional(flat[np.abs(flat).argmax()], min_digits=2)


def _odd(values: Any, rows: NDArray[np.float32]) -> str:
    return str(values[~np.isfinite(rows)][0])


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
