"""Reads HDF5 demonstrations in robomimic's layout: of robomimic (versions 1.4 and 1.5), and of other robots.

Files of other robots lack `env_args`. Their actions are taken as they are, whatever their size.
Format: https://robomimic.github.io/docs/datasets/overview.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from asd_policy.data.dataset import DEFAULTS, UNKNOWN_ENV, Choice, DatasetFormat, Rows, read_episodes
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
from asd_policy.data.lazy_images import LazyImages
from asd_policy.data.recording import Recording
from asd_policy.errors import AsdPolicyError, DataError, UnknownNameError
from asd_policy.policies.tasks import ARM_DIMS, arms_of, is_ours

ARM_ACTION_DIM = 7
POSES = "actions_abs"
NO_ENV_ARGS = (
    "The file has no env_args: its actions are taken as they are, neither as deltas in [-1, 1] nor as target poses.",
)
DEMO = re.compile(r"demo_[0-9]{1,18}")


class RobomimicFile:
    """An open file. Use it in a `with` statement. It implements `asd_policy.data.dataset.Dataset`.

    Attributes:
        path: the file.
        recording: the metadata of the recording; None in files of other robots.
        names: names of the selected demonstrations in numerical order.
        obs_shapes: shape of each observation, (D,) or (H, W, C) for images, in the requested order or robomimic's.
        absolute: whether actions are target poses.
        action_dim: A.
        action_kind: a key of `asd_policy.data.gate.ACTION_KINDS`.
        env_id: our environment that takes these actions, or the one that was asked for.
        fps: None, because files do not say it in one place.
    """

    fps: float | None = None

    def __init__(self, file: UntrustedHdf5, choice: Choice):
        self._file, self.path = file, file.path
        self.recording = self._recording()
        self.absolute, self.action_kind, self.env_id = self._meaning(choice)
        if choice.clip_actions:
            check_clippable(str(self.path), self.action_kind)
        self._clip, self._clipped = choice.clip_actions, dict[str, str]()
        self.names = self._selected(choice.filter_key)
        poses_beside = self.absolute and self.recording is not None and not self.recording.absolute
        self._actions = choice.action_key or (POSES if poses_beside else "actions")
        self.action_dim = self._declared_action_dim(self.names[0])
        self.obs_shapes = self._obs_shapes(choice.obs_keys)
        self._images = {key: _Hdf5Images(file, shape) for key, shape in self.obs_shapes.items() if len(shape) == 3}
        self._gate = Gate(str(self.path), self.obs_shapes, self.action_dim, self.action_kind)

    @classmethod
    def open(cls, path: str | Path, choice: Choice = DEFAULTS) -> RobomimicFile:
        """Open a file.

        Args:
            choice: what to read. By default actions are `actions`, and observations the vectors that robomimic's
                policies use, or in files of other robots all vectors.

        Raises:
            UnknownNameError: if the filter or an observation is not in the file.
            ConfigError: if `clip_actions` is set and actions are not deltas.
            DataError: if the file is damaged or of an unsupported kind; the message gives the reason.
        """
        file = UntrustedHdf5(Path(path))
        try:
            return cls(file, choice)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> RobomimicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def notes(self) -> tuple[str, ...]:
        return *(NO_ENV_ARGS if self.recording is None else self.recording.notes), *self._clipped.values()

    @property
    def attrs(self) -> Mapping[str, Any]:
        return {"env_id": self.env_id, "source": self.path.name, "action_kind": self.action_kind}

    def episode(self, name: str) -> Demonstration:
        """Read one demonstration. Its images are lazy.

        Raises:
            DataError: if it is damaged, or its actions are not of the declared kind.
        """
        where = f"{self.path}: {name}"
        action = as_rows(where, self._actions, self._rows(name, self._actions), (self.action_dim,))
        if self._clip:
            action, note = clip_deltas(where, action)
            if note is not None:
                self._clipped[name] = note
        obs = {key: self._observation(name, key) for key in self.obs_shapes}
        steps = self._steps_to_success(name, len(action))
        episode = self._gate.admit(Demonstration(_number(name), obs, action, action, steps), name)
        self._check_num_samples(name, len(action))
        return episode

    def read(self, episodes: int) -> Rows:
        """The first demonstrations. Raises DataError as `episode`."""
        return read_episodes(self, episodes)

    def _observation(self, demo: str, key: str) -> NDArray[Any] | LazyImages:
        name, shape = f"obs/{key}", self.obs_shapes[key]
        if len(shape) == 3 and self._file.has(f"data/{demo}/{name}"):
            found, dtype = self._file.layout(f"data/{demo}/{name}")
            if found[1:] == shape and dtype == np.uint8:  # all else is read and refused
                return self._images[key].of(f"data/{demo}/{name}", found[0])
        return self._rows(demo, name, shape)

    def _meaning(self, choice: Choice) -> tuple[bool, str, str]:
        """Whether actions are target poses, their kind, and the environment that takes them."""
        recording = self.recording
        if recording is None or choice.action_key not in (None, "actions"):
            if choice.absolute:
                raise DataError(
                    f"{self.path}: absolute is for the actions of robosuite's recordings, but "
                    + ("the file has no env_args." if recording is None else f"action_key is {choice.action_key!r}.")
                )
            return False, "other", choice.env_id or (UNKNOWN_ENV if recording is None else recording.env_name)
        absolute = choice.absolute or recording.absolute
        kind = "pose" if absolute else "delta" if recording.poses else "other"
        return absolute, kind, choice.env_id or recording.env_for(absolute)

    def _recording(self) -> Recording | None:
        """The metadata of a robomimic file; None in files of other robots."""
        self._file.names("data")
        text = self._file.attribute("data", "env_args")
        if text is None:
            return None
        if isinstance(text, np.ndarray) and text.size == 1:
            text = text.item()
        if not isinstance(text, str | bytes):
            raise DataError(
                f"{self.path}: its env_args cannot be understood: the attribute of 'data' is {type(text).__name__}; "
                "expected JSON, as robomimic writes it."
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
        if self.absolute and self._actions == POSES and not self._file.has(f"data/{demo}/{POSES}"):
            raise DataError(
                f"{self.path} has no absolute actions ({POSES}); add them with robomimic's "
                "robosuite_add_absolute_actions.py."
            )
        if not self._file.has(f"data/{demo}/{self._actions}"):
            raise UnknownNameError(f"action of {self.path}", self._actions, self._file.names(f"data/{demo}"))
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
        group = f"data/{self.names[0]}/obs"
        if not self._file.has(group):
            raise DataError(
                f"{self.path} has no observations: it is robomimic's raw file. Take low_dim_v15.hdf5, or make it with "
                "robomimic's dataset_states_to_obs.py."
            )
        keys = wanted or self._vectors(group)
        shapes = {}
        for key in keys:
            check_key(str(self.path), key)
            if not self._file.has(f"{group}/{key}"):
                raise UnknownNameError(f"observation of {self.path}", key, self._file.names(group))
            shape, dtype = self._file.layout(f"{group}/{key}")
            shapes[key] = shape[1:] or (1,)
            check_step_shape(f"{self.path}: {self.names[0]}", key, shapes[key])
            check_dtype(f"{self.path}: {self.names[0]}", key, dtype, shapes[key])
        return shapes

    def _vectors(self, group: str) -> list[str]:
        """The observations of robomimic's low-dimensional policies, or in files of other robots all vectors."""
        found = self._file.names(group)
        arms = [arm for arm in (0, 1) if f"robot{arm}_eef_pos" in found]
        keys = ["object", *(f"robot{arm}_{name}" for arm in arms for name in ARM_DIMS)]
        missing = [key for key in keys if key not in found]
        if (missing or not arms) and self.recording is None:
            keys = [key for key in found if self._is_vector(f"{group}/{key}")]
            missing, arms = ([] if keys else ["vectors"]), [0]
        if missing or not arms:
            raise DataError(
                f"{self.path} lacks the low-dimensional observations {missing or ['robot0_eef_pos']}; it has "
                f"{', '.join(found)}. Name those to read (--obs-keys)."
            )
        return keys

    def _is_vector(self, name: str) -> bool:
        try:
            shape, dtype = self._file.layout(name)
        except DataError:  # a group
            return False
        return len(shape) == 2 and shape[1] > 0 and dtype.kind in "fiub"

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


class _Hdf5Images:
    """The images of one observation in all demonstrations. It implements `asd_policy.data.lazy_images.ImageReader`."""

    compressed = False

    def __init__(self, file: UntrustedHdf5, shape: tuple[int, ...]):
        self._file = file
        height, width, channels = shape
        self.shape = height, width, channels
        self._begins: dict[str, int] = {}  # array -> number of its first image
        self._total = 0

    def of(self, name: str, steps: int) -> LazyImages:
        """The images of one demonstration. Raises DataError if the file does not hold them all."""
        self._file.check_whole(name)
        if name not in self._begins:
            self._begins[name] = self._total
            self._total += steps
        return LazyImages(self, self._begins[name] + np.arange(steps))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `ImageReader.read`."""
        names, begins = list(self._begins), np.array([*self._begins.values()])
        place = np.searchsorted(begins, rows, side="right") - 1
        parts = [self._file.rows(names[i], rows[place == i] - begins[i]) for i in np.unique(place)]
        return np.concatenate(parts)

    def fingerprint(self) -> None:
        """Images are hashed themselves, as in runs of earlier versions."""


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and bool(h5py.is_hdf5(path))


HDF5 = DatasetFormat("hdf5", "an HDF5 file in robomimic's layout", _is_hdf5, RobomimicFile.open)
