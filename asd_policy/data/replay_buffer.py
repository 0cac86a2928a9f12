"""Reads real-stanford's replay buffers: `.zarr` folders and `.zarr.zip` files of the zarr 2 layout.

Layout (https://github.com/real-stanford/diffusion_policy, `common/replay_buffer.py`): `data/<key>` with a row for each
of N steps, and `meta/episode_ends`, one past the last step of each episode.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.dataset import UNKNOWN_ENV, Choice, DatasetFormat, Rows, read_episodes
from asd_policy.data.gate import CHANNELS, MAX_KEYS, Demonstration, Gate, check_clippable, check_key
from asd_policy.data.lazy_images import LazyImages
from asd_policy.data.paths import Files, Folder, Zip
from asd_policy.data.zarr2 import Zarr2Array
from asd_policy.errors import DataError, UnknownNameError

ACTION = "action"
ENDS = "meta/episode_ends"
NO_OBSERVATIONS = ("timestamp", "stage", "reward", "done", "n_contacts", "episode_ends")
"""Arrays that are no observations unless they are named. Nor are others whose name begins with `action`."""


class ReplayBuffer:
    """A replay buffer, opened for reading. It implements `asd_policy.data.dataset.Dataset`."""

    action_kind = "other"
    fps: float | None = None  # replay buffers do not say it

    def __init__(self, path: Path, choice: Choice):
        choice.check_no_hdf5(path)
        self.path, self._source = path, str(path)
        self._files: Files = Zip(path) if path.is_file() else Folder(path)
        self._arrays = self._find()
        if choice.clip_actions:
            check_clippable(self._source, self.action_kind)
        self._ends = self._episode_ends()
        self._action_key = choice.action_key or ACTION
        self.env_id = choice.env_id or UNKNOWN_ENV
        self.obs_shapes, self._left_out = self._observations(choice.obs_keys)
        action = self._vector(self._action_key)
        self.action_dim = action.shape[1] if len(action.shape) == 2 else 0
        self._gate = Gate(self._source, self.obs_shapes, self.action_dim, self.action_kind)
        self._images = {
            key: _ZarrImages(self._source, self._arrays[key], self._ends)
            for key, shape in self.obs_shapes.items()
            if len(shape) == 3
        }
        for key in (*self.obs_shapes, self._action_key):
            self._arrays[key].check_whole()
        self._rows: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: Path, choice: Choice) -> ReplayBuffer:
        """Open a replay buffer.

        Raises:
            UnknownNameError: if an observation or the action is not in it.
            ConfigError: on `clip_actions`, because its actions have no range.
            DataError: if it is damaged, or an array has another number of steps than the episodes.
        """
        return cls(path, choice)

    @property
    def names(self) -> Sequence[str]:
        return [f"episode {index}" for index in range(len(self._ends))]

    @property
    def notes(self) -> tuple[str, ...]:
        notes = [
            "A replay buffer does not say what its actions are: they are taken as they are. Nor does it say its rate: "
            "n_obs_steps, horizon and n_action_steps count its steps."
        ]
        if self._left_out:
            notes.append(f"No observations: {', '.join(self._left_out)}. Name them (--obs-keys) to use them.")
        return tuple(notes)

    @property
    def attrs(self) -> Mapping[str, Any]:
        return {"env_id": self.env_id, "source": self.path.name, "action_kind": self.action_kind}

    def episode(self, name: str) -> Demonstration:
        """One episode. Its images are lazy. Raises DataError naming it and the step if a number is not finite."""
        index = int(name.removeprefix("episode "))
        steps = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        action = self._vectors(self._action_key)[steps]
        obs: dict[str, NDArray[Any] | LazyImages] = {}
        for key in self.obs_shapes:
            if key in self._images:
                obs[key] = LazyImages(self._images[key], np.arange(steps.start, steps.stop))
            else:
                obs[key] = self._vectors(key)[steps]
        return self._gate.admit(Demonstration(index, obs, action, action, len(action)), name)

    def read(self, episodes: int) -> Rows:
        """The first episodes. Raises DataError as `episode`."""
        return read_episodes(self, episodes)

    def close(self) -> None:
        """Files are closed after each use; a zip file with this object."""

    def _find(self) -> dict[str, Zarr2Array]:
        """The arrays in `data` by key."""
        keys = [key for key in self._files.names("data") if self._files.size(f"data/{key}/.zarray") is not None]
        if not 1 <= len(keys) <= MAX_KEYS:
            raise DataError(
                f"{self._source} has {len(keys)} arrays in data; expected 1 to {MAX_KEYS} of zarr format 2."
            )
        for key in keys:
            check_key(self._source, key)
        return {key: Zarr2Array(self._files, self._source, f"data/{key}") for key in keys}

    def _episode_ends(self) -> NDArray[np.int64]:
        array = Zarr2Array(self._files, self._source, ENDS)
        if len(array.shape) != 1 or array.dtype.kind not in "iu" or array.shape[0] < 1:
            raise DataError(
                f"{self._source}: {ENDS} has shape {array.shape} and type {array.dtype}; expected at least one integer."
            )
        ends = array.read().astype(np.int64)
        if (bad := np.flatnonzero(np.diff(ends, prepend=0) <= 0)).size:
            raise DataError(f"{self._source}: episode {bad[0]} ends at step {ends[bad[0]]}; expected increasing ends.")
        for key, values in self._arrays.items():
            if values.shape[0] != ends[-1]:
                raise DataError(
                    f"{self._source}: data/{key} has {values.shape[0]} steps, but episode {len(ends) - 1} ends at step "
                    f"{ends[-1]}; expected as many."
                )
        return ends

    def _observations(self, wanted: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """Shapes of the observations, and the arrays left out: by default all vectors and images."""
        shapes = {key: _step_shape(array) for key, array in self._arrays.items() if key != self._action_key}
        for key in wanted:
            if key not in shapes:
                raise UnknownNameError(f"observation of {self._source}", key, shapes)
        if wanted:
            return {key: shapes[key] for key in wanted}, []
        usual = [key for key in shapes if key not in NO_OBSERVATIONS and not key.startswith(ACTION)]
        plain = [key for key in usual if len(self._arrays[key].shape) in (2, 4)]
        return {key: shapes[key] for key in plain}, [key for key in shapes if key not in plain]

    def _vector(self, key: str) -> Zarr2Array:
        if key not in self._arrays:
            raise UnknownNameError(f"action of {self._source}", key, self._arrays)
        return self._arrays[key]

    def _vectors(self, key: str) -> NDArray[Any]:
        """All rows of an array of vectors (N, D)."""
        if key not in self._rows:
            values = self._arrays[key].read()
            self._rows[key] = values.reshape(len(values), -1)
        return self._rows[key]


class _ZarrImages:
    """Images of one array, (N, H, W, C). It implements `asd_policy.data.lazy_images.ImageReader`.

    Arrays of floats hold pixels from 0 to 255, as in real-stanford's Push-T; they are read as uint8.
    """

    compressed = False

    def __init__(self, source: str, array: Zarr2Array, ends: NDArray[np.int64]):
        self._source, self._array, self._ends = source, array, ends
        _, height, width, channels = array.shape
        self.shape = height, width, channels
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise DataError(f"{source}: {array.name} has type {array.dtype}; expected uint8 from 0 to 255. Convert it.")

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `ImageReader.read`."""
        images = self._array.read(rows)
        if images.dtype == np.uint8:
            return images
        with np.errstate(invalid="ignore"):
            pixels = images.astype(np.uint8)
        if (bad := np.flatnonzero((pixels != images).any(axis=(1, 2, 3)))).size:
            step = int(rows[bad[0]])
            episode = int(np.searchsorted(self._ends, step, side="right"))
            frame = step - (int(self._ends[episode - 1]) if episode else 0)
            raise DataError(
                f"{self._source}: episode {episode} has pixels of {self._array.name} at step {frame} that are no whole "
                "numbers from 0 to 255. Convert the images to uint8."
            )
        return pixels

    def fingerprint(self) -> None:
        """Images are hashed themselves."""


def _step_shape(array: Zarr2Array) -> tuple[int, ...]:
    """(H, W, C) of images. All other arrays are vectors, flattened if they have more axes.

    (C, H, W) of images whose channels come first stays, for `Gate` to refuse: as a vector it would be learned silently.
    """
    shape = array.shape[1:]
    image = len(shape) == 3 and (shape[2] in CHANNELS or shape[0] in CHANNELS)
    return shape if image else (int(np.prod(shape)),)


def _is_replay_buffer(path: Path) -> bool:
    return (path / ".zgroup").is_file() or (path.is_file() and zipfile.is_zipfile(path))


REPLAY_BUFFER = DatasetFormat(
    "replay buffer", "a .zarr folder or .zarr.zip file of zarr format 2", _is_replay_buffer, ReplayBuffer.open
)
