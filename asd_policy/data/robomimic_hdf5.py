"""Reads robomimic's HDF5 demonstrations (versions 1.4 and 1.5) on vectors and images, with deltas or target poses.

Format: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.gate import (
    Demonstration,
    Gate,
    as_rows,
    check_clippable,
    check_dtype,
    check_key,
    check_step_shape,
    clip_deltas,
)
from asd_policy.data.hdf5 import UntrustedHdf5
from asd_policy.data.recording import Recording
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import AsdPolicyError, DataError, UnknownNameError
from asd_policy.policies.tasks import ARM_DIMS, arms_of, is_ours

ARM_ACTION_DIM = 7
POSES = "actions_abs"
DEMO = re.compile(r"demo_[0-9]{1,18}")


class RobomimicFile:
    """An open robomimic file. Use it in a `with` statement.

    Attributes:
        recording: the metadata of the recording.
        demos: names of the selected demonstrations in numerical order.
        obs_shapes: shape of each observation, (D,) or (H, W, C) for images, in the requested order or robomimic's.
        absolute: whether actions are target poses.
        action_kind: a key of `asd_policy.data.gate.ACTION_KINDS`.
        env_id: our environment that takes these actions.
        notes: warnings to read before training on the file. Reading a clipped demonstration adds one.
    """

    def __init__(
        self, file: UntrustedHdf5, filter_key: str | None, absolute: bool, obs_keys: Sequence[str], clip_actions: bool
    ):
        self._file, self.path = file, file.path
        self.recording = self._recording()
        self.absolute = absolute or self.recording.absolute
        self.action_kind = "pose" if self.absolute else "delta" if self.recording.poses else "other"
        if clip_actions:
            check_clippable(str(self.path), self.action_kind)
        self._clip, self._clipped = clip_actions, dict[str, str]()
        self.env_id = self.recording.env_for(self.absolute)
        self.demos = self._selected(filter_key)
        self._actions = POSES if self.absolute and not self.recording.absolute else "actions"
        self.action_dim = self._declared_action_dim(self.demos[0])
        self.obs_shapes = self._obs_shapes(obs_keys)
        self._gate = Gate(str(self.path), self.obs_shapes, self.action_dim, self.action_kind)

    @classmethod
    def open(
        cls,
        path: str | Path,
        filter_key: str | None = None,
        absolute: bool = False,
        obs_keys: Sequence[str] = (),
        clip_actions: bool = False,
    ) -> RobomimicFile:
        """Open a file.

        Args:
            filter_key: a mask in the file, such as "train". None takes every demonstration.
            absolute: read the target poses that robomimic's robosuite_add_absolute_actions.py has added to the deltas.
            obs_keys: observations to read, vectors or images. If empty, the vectors that robomimic's policies use.
            clip_actions: clip deltas to [-1, 1], with a note. Without it, deltas outside are an error.

        Raises:
            UnknownNameError: if the filter or an observation is not in the file.
            ConfigError: if `clip_actions` is set and actions are not deltas.
            DataError: if the file is damaged or of an unsupported kind; the message gives the reason.
        """
        file = UntrustedHdf5(Path(path))
        try:
            return cls(file, filter_key, absolute, obs_keys, clip_actions)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> RobomimicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def notes(self) -> tuple[str, ...]:
        return *self.recording.notes, *self._clipped.values()

    def episode(self, name: str) -> Demonstration:
        """Read one demonstration.

        Raises:
            DataError: if it is damaged, or its actions are not of the declared kind.
        """
        where = f"{self.path}: {name}"
        action = as_rows(where, self._actions, self._rows(name, self._actions), (self.action_dim,))
        if self._clip:
            action, note = clip_deltas(where, action)
            if note is not None:
                self._clipped[name] = note
        obs = {key: self._rows(name, f"obs/{key}", shape) for key, shape in self.obs_shapes.items()}
        steps = self._steps_to_success(name, len(action))
        episode = self._gate.admit(Demonstration(_number(name), obs, action, action, steps), name)
        self._check_num_samples(name, len(action))
        return episode

    def to_store(self, path: str | Path) -> EpisodeStore:
        """Copy the demonstrations into a new episode store. On failure no store is left.

        Raises:
            DataError: if the folder exists or cannot be written, or a demonstration fails a check.
        """
        path = Path(path)
        if path.exists():
            raise DataError(f"{path} exists already: open it, or choose another path.")
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        attrs = {"env_id": self.env_id, "source": self.path.name, "action_kind": self.action_kind}
        store = EpisodeStore.create(partial, self.obs_shapes, self.action_dim, attrs)
        try:
            for name in self.demos:
                store.append(self.episode(name))
            store.update_attrs(notes=list(self.notes))
        except BaseException:
            store.close()
            shutil.rmtree(partial, ignore_errors=True)
            raise
        store.close()
        os.replace(partial, path)
        return EpisodeStore.open(path, writable=True)

    def _recording(self) -> Recording:
        self._file.names("data")
        text = self._file.attribute("data", "env_args")
        if isinstance(text, np.ndarray) and text.size == 1:
            text = text.item()
        if text is None or not isinstance(text, str | bytes):
            raise DataError(
                f"{self.path}: its env_args cannot be understood: the attribute of 'data' is "
                f"{'missing' if text is None else type(text).__name__}; expected JSON, as robomimic writes it."
            )
        try:
            return Recording.parse(text.decode() if isinstance(text, bytes) else text, str(self.path))
        except AsdPolicyError:
            raise
        except Exception as error:  # the attribute can hold JSON of any shape
            raise DataError(f"{self.path}: its env_args cannot be understood: {error!r}.") from error

    def _selected(self, filter_key: str | None) -> list[str]:
        names = self._file.names("data")
        if filter_key is not None:
            names = self._filtered(filter_key, names)
        bad = [name for name in names if not DEMO.fullmatch(name)]
        if bad or not names:
            raise DataError(
                f"{self.path} holds {len(names)} demonstrations{f', such as {bad[0][:50]!r}' if bad else ''}; "
                "expected at least one, each named demo_ and a number."
            )
        names = sorted(names, key=_number)
        for one, other in pairwise(names):
            if _number(one) == _number(other):
                raise DataError(f"{self.path} holds {one} and {other}; expected each number once. Remove one.")
        return names

    def _filtered(self, filter_key: str, names: Sequence[str]) -> list[str]:
        masks = self._file.names("mask") if self._file.has("mask") else []
        if filter_key not in masks:
            raise UnknownNameError(f"filter of {self.path}", filter_key, masks)
        mask = self._file.read(f"mask/{filter_key}").ravel().tolist()
        try:
            chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in mask}
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: the names in filter {filter_key!r} are not text: {error}.") from error
        if not chosen:
            raise DataError(f"{self.path}: filter {filter_key!r} names no demonstrations.")
        missing = sorted(chosen - set(names))
        if missing:
            raise DataError(f"{self.path}: filter {filter_key!r} names {missing[:3]}, which are not in the file.")
        return list(chosen)

    def _declared_action_dim(self, demo: str) -> int:
        if self._actions == POSES and not self._file.has(f"data/{demo}/{POSES}"):
            raise DataError(
                f"{self.path} has no absolute actions ({POSES}); add them with robomimic's "
                "robosuite_add_absolute_actions.py."
            )
        shape, _ = self._file.layout(f"data/{demo}/{self._actions}")
        fits = len(shape) == 2 and shape[1] > 0 and (self.action_kind == "other" or shape[1] % ARM_ACTION_DIM == 0)
        expected = f"{ARM_ACTION_DIM} per arm"
        if is_ours(self.env_id):
            arms = arms_of(self.env_id)
            fits = fits and shape[1] == ARM_ACTION_DIM * arms
            expected += f", of which {self.env_id} has {arms}"
        if not fits:
            raise DataError(f"{self.path}: the actions of {demo} have shape {shape}; expected (steps, {expected}).")
        return shape[1]

    def _obs_shapes(self, wanted: Sequence[str]) -> dict[str, tuple[int, ...]]:
        group = f"data/{self.demos[0]}/obs"
        if not self._file.has(group):
            raise DataError(
                f"{self.path} has no observations: it is robomimic's raw file. Take low_dim_v15.hdf5, or make it with "
                "robomimic's dataset_states_to_obs.py."
            )
        keys = wanted or self._vectors(self._file.names(group))
        shapes = {}
        for key in keys:
            check_key(str(self.path), key)
            if not self._file.has(f"{group}/{key}"):
                raise UnknownNameError(f"observation of {self.path}", key, self._file.names(group))
            shape, dtype = self._file.layout(f"{group}/{key}")
            shapes[key] = shape[1:] or (1,)
            check_step_shape(f"{self.path}: {self.demos[0]}", key, shapes[key])
            check_dtype(f"{self.path}: {self.demos[0]}", key, dtype, shapes[key])
        return shapes

    def _vectors(self, found: Sequence[str]) -> list[str]:
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

    def _rows(self, demo: str, name: str, step_shape: tuple[int, ...] = ()) -> NDArray[Any]:
        """A dataset of a demonstration. Raises DataError if it is missing or of a wrong type."""
        where = f"{self.path}: {demo}"
        if not self._file.has(f"data/{demo}/{name}"):
            raise DataError(f"{where} lacks {name!r}, which every demonstration must have. Remove it, or repair it.")
        return self._file.read(f"data/{demo}/{name}", lambda dtype: check_dtype(where, name, dtype, step_shape))

    def _check_num_samples(self, demo: str, steps: int) -> None:
        said = self._file.attribute(f"data/{demo}", "num_samples")
        try:
            same = said is None or float(np.asarray(said).item()) == steps  # some writers store it as text
        except (TypeError, ValueError):
            same = False
        if not same:
            raise DataError(f"{self.path}: {demo} has {steps} actions, but its num_samples says {said}.")

    def _steps_to_success(self, demo: str, steps: int) -> int:
        """Steps until the first reward, which these tasks give on success. All steps if there is none."""
        name = f"data/{demo}/rewards"
        if not self._file.has(name):
            return steps
        rewards = as_rows(f"{self.path}: {demo}", "rewards", self._rows(demo, "rewards").reshape(-1), (1,))
        if len(rewards) != steps:
            raise DataError(f"{self.path}: {demo} has {steps} actions but {len(rewards)} rewards; expected as many.")
        rewarded = np.flatnonzero(rewards)
        return int(rewarded[0]) + 1 if len(rewarded) else steps


def _number(demo: str) -> int:
    """17 of "demo_17"."""
    return int(demo.rpartition("_")[2])
