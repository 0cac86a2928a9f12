"""robomimic's HDF5 demonstrations (versions 1.4 and 1.5): vectors and images; delta actions or target poses.

Format: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from asd_policy.data.recording import Recording
from asd_policy.data.store import Episode, EpisodeStore
from asd_policy.errors import DataError, UnknownNameError
from asd_policy.policies.tasks import ARM_DIMS, env_id

ARM_ACTION_DIM = 7
POSES = "actions_abs"
LARGEST_DELTA = 1.0 + 1e-4


class RobomimicFile:
    """An open file; use it in a `with` statement.

    Attributes:
        recording: how the demonstrations were recorded.
        demos: their names in numerical order, those of the filter alone if there is one.
        obs_shapes: observation keys in robomimic's order, or in that in which they are asked for: (D,), of images
            (H, W, C).
        absolute: whether actions are target poses, and not deltas.
        env_id: our environment that takes such actions.
    """

    def __init__(self, file: h5py.File, path: Path, filter_key: str | None, absolute: bool, obs_keys: Sequence[str]):
        self._file, self.path = file, path
        self.recording = Recording.parse(str(self._entry("data").attrs.get("env_args", "")), str(path))
        self.absolute = absolute or self.recording.absolute
        self.env_id = env_id(self.recording.env_name, self.recording.frame if self.absolute else None)
        self.demos = self._selected(filter_key)
        self.obs_shapes = self._obs_shapes(obs_keys)
        self._actions = POSES if self.absolute and not self.recording.absolute else "actions"
        self.action_dim = int(self._action_rows(self.demos[0]).shape[1])

    @classmethod
    def open(
        cls,
        path: str | Path,
        filter_key: str | None = None,
        absolute: bool = False,
        obs_keys: Sequence[str] = (),
    ) -> RobomimicFile:
        """Open a file.

        Args:
            filter_key: a mask in the file, such as "train"; None takes every demonstration.
            absolute: take the target poses that robomimic's robosuite_add_absolute_actions.py has put beside deltas.
            obs_keys: observations to read, images too; the low-dimensional ones of robomimic's policies if empty.

        Raises:
            UnknownNameError: on a filter or an observation that is not in the file.
            DataError: if the file is damaged, or not of a kind that can be used; the message says why.
        """
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error}. Expected a robomimic HDF5 file. Is it complete?") from error
        try:
            return cls(file, Path(path), filter_key, absolute, obs_keys)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> RobomimicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def episode(self, name: str) -> Episode:
        """One demonstration.

        Raises:
            DataError: if it is damaged, or its actions are not of the kind that they are said to be.
        """
        actions = self._action_rows(name)
        largest = float(np.abs(actions).max(initial=0))
        limit = np.inf if self.absolute else LARGEST_DELTA
        if not largest <= limit or actions.shape[1:] != (self.action_dim,) or self.action_dim % ARM_ACTION_DIM:
            raise DataError(
                f"{self.path}: the actions of {name} have shape {actions.shape} and reach {largest:.2f}; expected "
                f"{'finite poses' if self.absolute else 'deltas in [-1, 1]'}, {ARM_ACTION_DIM} per arm."
            )
        obs = {key: self._rows(name, f"obs/{key}", self._dtype(key)) for key in self.obs_shapes}
        shapes = {key: values.shape for key, values in obs.items()}
        if any(shape != (len(actions), *self.obs_shapes[key]) for key, shape in shapes.items()):
            raise DataError(f"{self.path}: {name} has {len(actions)} actions but observations {shapes}.")
        return Episode(_number(name), obs, actions, actions, self._steps_to_success(name, len(actions)))

    def to_store(self, path: str | Path) -> EpisodeStore:
        """Copy the demonstrations into a new episode store."""
        attrs = {"env_id": self.env_id, "source": self.path.name, "notes": list(self.recording.notes)}
        store = EpisodeStore.create(path, self.obs_shapes, self.action_dim, attrs)
        for name in self.demos:
            store.append(self.episode(name))
        return store

    def _selected(self, filter_key: str | None) -> list[str]:
        names = list(self._entry("data"))
        if filter_key is not None:
            masks = self._file.get("mask", {})
            if filter_key not in masks:
                raise UnknownNameError(f"filter of {self.path}", filter_key, masks)
            chosen = [name.decode() for name in masks[filter_key][()]]
            missing = sorted(set(chosen) - set(names))
            if missing:
                raise DataError(f"{self.path}: filter {filter_key!r} names {missing[:3]}, which are not in the file.")
            names = chosen
        bad = [name for name in names if not re.fullmatch(r"demo_\d+", name)]
        if bad or not names:
            raise DataError(f"{self.path} holds {len(names)} demonstrations{f', such as {bad[0]!r}' if bad else ''}.")
        return sorted(names, key=_number)

    def _obs_shapes(self, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
        group = f"data/{self.demos[0]}/obs"
        if group not in self._file:
            raise DataError(
                f"{self.path} has no observations: it is robomimic's raw file. Take low_dim_v15.hdf5, or make it with "
                "robomimic's dataset_states_to_obs.py."
            )
        found = self._entry(group)
        shapes = {key: tuple(found[key].shape[1:]) for key in wanted or self._vectors(found) if key in found}
        for key in wanted:
            if key not in found:
                raise UnknownNameError(f"observation of {self.path}", key, found)
            image = len(shapes[key]) == 3 and found[key].dtype == np.uint8
            if not image and len(shapes[key]) != 1:
                raise DataError(
                    f"{self.path}: observation {key!r} has shape {shapes[key]} and type {found[key].dtype}."
                )
        return shapes

    def _vectors(self, found: h5py.Group) -> list[str]:
        """The observations of robomimic's low-dimensional policies."""
        arms = [arm for arm in (0, 1) if f"robot{arm}_eef_pos" in found]
        keys = ["object", *(f"robot{arm}_{name}" for arm in arms for name in ARM_DIMS)]
        missing = [key for key in keys if key not in found]
        if missing or not arms:
            raise DataError(
                f"{self.path} lacks the low-dimensional observations {missing or ['robot0_eef_pos']}; it has "
                f"{', '.join(found)}. Name those to read (--obs-keys)."
            )
        return keys

    def _dtype(self, key: str) -> type[np.generic]:
        return np.float32 if len(self.obs_shapes[key]) == 1 else np.uint8

    def _steps_to_success(self, name: str, steps: int) -> int:
        """Steps until the first reward, which these tasks give on success; all steps where there is none."""
        if f"data/{name}/rewards" not in self._file:
            return steps
        rewarded = np.flatnonzero(self._entry(f"data/{name}/rewards")[()])
        return int(rewarded[0]) + 1 if len(rewarded) else steps

    def _action_rows(self, demo: str) -> Any:
        if self._actions == POSES and f"data/{demo}/{POSES}" not in self._file:
            raise DataError(
                f"{self.path} has no absolute actions ({POSES}); add them with robomimic's "
                "robosuite_add_absolute_actions.py."
            )
        return self._rows(demo, self._actions)

    def _rows(self, demo: str, name: str, dtype: type[np.generic] = np.float32) -> Any:
        """A dataset of a demonstration."""
        try:
            return np.asarray(self._entry(f"data/{demo}/{name}")[()], dtype)
        except (OSError, TypeError, ValueError) as error:
            raise DataError(f"{self.path} is damaged at data/{demo}/{name}: {error}.") from error

    def _entry(self, name: str) -> Any:
        if name not in self._file:
            raise DataError(f"{self.path} lacks {name!r}, so it is no robomimic file; it has {', '.join(self._file)}.")
        return self._file[name]


def _number(demo: str) -> int:
    """17 of "demo_17"."""
    return int(demo.rpartition("_")[2])
