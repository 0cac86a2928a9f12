"""A zarr store of demonstrations. A writer killed at any moment leaves a sound store.

Layout (N steps in E episodes, concatenated):

    data/obs/<key>          (N, D) float32   observation before the step; an image is (N, H, W, C) uint8
    data/action             (N, A) float32   the expert's action: the training label
    data/executed_action    (N, A) float32   the executed action: the label plus exploration noise, clipped
    meta/episode_ends       (E,) int64       one past the last step of each episode
    meta/seed               (E,) int64       seed of the environment's reset, or the number of an imported episode
    meta/steps_to_success   (E,) int64       steps until the first success
    attributes              format_version, obs_keys, action_dim, action_kind, and any other JSON values

Appending an episode writes its data first and its end last; the end is the commit. Steps past the last end belong to
an interrupted append: readers ignore them, and the next writer removes them. There is one writer at a time.

Every chunk has a file, even a chunk of black images, and zstd's checksum. So a lost chunk shows as a missing file, and
a damaged one fails to decompress.
"""

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from asd_policy.data.gate import (
    MAX_KEYS,
    Demonstration,
    Gate,
    check_clippable,
    check_deltas,
    check_key,
    clip_deltas,
    first_beyond,
    first_not_finite,
)
from asd_policy.data.lock import lock_store
from asd_policy.data.zarr_array import check_array, check_chunks, chunk_file, has_checksum, no_array
from asd_policy.errors import AsdPolicyError, DataError
from asd_policy.policies.tasks import takes_poses

__all__ = ["Demonstration", "EpisodeStore"]

FORMAT_VERSION = 1
CHUNK_STEPS = 8192
CHUNK_IMAGES = 64
CHUNK_EPISODES = 4096


class EpisodeStore:
    """Episodes on disk. Make one with `create` or `open`.

    Opening for writing locks the store against other writers until `close()` or garbage collection.
    """

    def __init__(self, root: zarr.Group, path: Path, writable: bool):
        self._root = root
        self.path = path
        self.obs_keys = _obs_keys(path, root.attrs.get("obs_keys"))
        self.action_kind = _action_kind(root.attrs)
        self.obs_shapes = {key: tuple(self._array(f"data/obs/{key}").shape[1:]) for key in self.obs_keys}
        self.action_dim = int(self._array("data/action").shape[-1])
        self._gate = Gate(str(path), self.obs_shapes, self.action_dim, self.action_kind)
        self._release = weakref.finalize(self, os.close, lock_store(path)) if writable else None

    @classmethod
    def create(
        cls, path: str | Path, obs_shapes: Mapping[str, tuple[int, ...]], action_dim: int, attrs: Mapping[str, Any]
    ) -> "EpisodeStore":
        """A new, empty store.

        Args:
            path: a folder that does not exist yet.
            obs_shapes: observation keys and shapes, (D,) or (H, W, C) for images, in the order of the policy's
                condition.
            action_dim: size A of an action.
            attrs: JSON values that describe the collection. `action_kind` is the kind of actions, a key of
                `asd_policy.data.gate.ACTION_KINDS`. Without it, actions are target poses if `env_id` names one of our
                environments that take poses, else deltas.

        Raises:
            DataError: if the folder exists or cannot be made, or an observation's name or shape is invalid.
        """
        path = Path(path)
        if path.exists():
            raise DataError(f"{path} exists already: open it, or choose another path.")
        Gate(str(path), obs_shapes, action_dim, attrs.get("action_kind", "delta"))
        try:
            root = zarr.open_group(path, mode="w")
            for key, shape in obs_shapes.items():
                _create(root, f"data/obs/{key}", shape, "float32" if len(shape) == 1 else "uint8")
            for name in ("action", "executed_action"):
                _create(root, f"data/{name}", (action_dim,), "float32")
            for name in ("episode_ends", "seed", "steps_to_success"):
                _create(root, f"meta/{name}", (), "int64")
            # Attributes last, because a store without them is not opened
            own = {"format_version": FORMAT_VERSION, "obs_keys": list(obs_shapes), "action_dim": action_dim}
            root.attrs.update({**attrs, **own})
        except OSError as error:
            raise DataError(f"Cannot make the store {path}: {error}. Choose another path, or make room.") from error
        return cls(root, path, writable=True)

    @classmethod
    def open(cls, path: str | Path, writable: bool = False) -> "EpisodeStore":
        """Open an existing store. Reading is safe while another process appends.

        Args:
            path: the store's folder.
            writable: open for appending. This first removes the rest of an interrupted append.

        Raises:
            DataError: if there is no sound store, or another process is writing it.
        """
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise DataError(f"No episode store at {path}. Collect one first.")
        try:
            root = zarr.open_group(path, mode="r+" if writable else "r", use_consolidated=False)
        except Exception as error:  # zarr raises many types on a damaged zarr.json
            raise DataError(f"No episode store at {path}: {error}. Collect one first.") from error
        version = root.attrs.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}, expected {FORMAT_VERSION}: collect it anew.")
        store = cls(root, path, writable)
        if writable:
            store._drop_uncommitted()
        return store

    def close(self) -> None:
        """Release a writer's lock; it may not append any more. Does nothing for a reader."""
        if self._release is not None:
            self._release()

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of the store's attributes."""
        return dict(self._root.attrs.asdict())

    def update_attrs(self, **values: Any) -> None:
        """Set attributes (JSON values). Raises DataError if they cannot be written."""
        with self._zarr("cannot be written"):
            self._root.attrs.update(values)

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """One past the last step of each committed episode, (E,)."""
        name = "meta/episode_ends"
        array = self._array(name)
        # A commit interrupted between growing the array and writing the row leaves a zero at the end, or a missing
        # file if the row begins a chunk.
        count = array.shape[0]
        begins_chunk = count % array.chunks[0] == 1
        ends = self._read(
            name, 0, count - (begins_chunk and not chunk_file(self.path, name, array, count - 1).exists())
        )
        ends = ends[:-1] if len(ends) and ends[-1] == 0 else ends
        if (np.diff(ends, prepend=0) <= 0).any():
            raise DataError(f"{self.path} is damaged: meta/episode_ends does not increase.")
        return ends

    @property
    def num_episodes(self) -> int:
        """E, the number of committed episodes."""
        return len(self.episode_ends)

    @property
    def num_steps(self) -> int:
        """N, the number of steps in committed episodes."""
        ends = self.episode_ends
        return int(ends[-1]) if len(ends) else 0

    @property
    def seeds(self) -> NDArray[np.int64]:
        """The reset seed of each episode, (E,)."""
        return self._meta("seed")

    @property
    def steps_to_success(self) -> NDArray[np.int64]:
        """Steps to the first success in each episode, (E,)."""
        return self._meta("steps_to_success")

    def obs(self, key: str) -> NDArray[Any]:
        """One observation of all committed steps: (N, D) float32 or (N, H, W, C) uint8."""
        return self._steps(f"obs/{key}", self.episode_ends)

    def check_images(self, key: str) -> None:
        """Raise DataError if images of an observation are lost."""
        self._check_chunks(f"data/obs/{key}", self._array(f"data/obs/{key}"), 0, self.num_steps)

    def read_images(self, key: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (n, H, W, C) of some steps. Raises DataError if they are damaged."""
        array = self._array(f"data/obs/{key}")
        with self._zarr(f"is damaged at data/obs/{key}"):
            run = int(rows[-1]) - int(rows[0]) + 1 == len(rows)  # slices are faster
            return np.asarray(array[rows[0] : rows[-1] + 1] if run else array.oindex[rows], np.uint8)

    def actions(self, executed: bool = False) -> NDArray[np.float32]:
        """The expert's actions of all committed steps, or the executed actions; (N, A)."""
        return self._steps("executed_action" if executed else "action", self.episode_ends)

    def labels(self, clip: bool = False) -> tuple[NDArray[np.float32], str | None]:
        """The training labels (N, A), which are the expert's actions, and a note if any were clipped.

        Args:
            clip: clip deltas to [-1, 1]. Without it, deltas outside are an error.

        Raises:
            ConfigError: if `clip` is set and actions are not deltas.
            DataError: if deltas lie outside [-1, 1] and `clip` is not set.
        """
        ends = self.episode_ends
        actions = self._steps("action", ends)
        if clip:
            check_clippable(str(self.path), self.action_kind)
        if self.action_kind != "delta":
            return actions, None
        if clip:
            return clip_deltas(str(self.path), actions)
        step = first_beyond(actions)
        if step is not None:
            episode = int(np.searchsorted(ends, step, side="right"))
            begin = int(ends[episode - 1]) if episode else 0
            check_deltas(f"{self.path}: episode {episode}", actions[begin : int(ends[episode])])
        return actions, None

    def episode(self, index: int) -> Demonstration:
        """One episode by its index. Raises DataError if there is none."""
        ends = self.episode_ends
        if not 0 <= index < len(ends):
            raise DataError(f"No episode {index} in {self.path}: it holds {len(ends)}.")
        return Demonstration(
            seed=int(self._read("meta/seed", index, index + 1)[0]),
            obs={key: self._steps(f"obs/{key}", ends, index) for key in self.obs_keys},
            action=self._steps("action", ends, index),
            executed_action=self._steps("executed_action", ends, index),
            steps_to_success=int(self._read("meta/steps_to_success", index, index + 1)[0]),
        )

    def append(self, episode: Demonstration) -> None:
        """Append one episode and commit it.

        Raises:
            DataError: if it fails a check (`asd_policy.data.gate`), rows of the chunks that it extends are lost, or it
                cannot be written.
        """
        episode = self._gate.admit(episode, f"episode of seed {episode.seed}")
        self._drop_uncommitted()  # remove the rest of an append that failed
        end = self.num_steps + len(episode.action)
        rows = {f"data/obs/{key}": episode.obs[key] for key in self.obs_keys}
        rows |= {"data/action": episode.action, "data/executed_action": episode.executed_action}
        meta = {"seed": episode.seed, "steps_to_success": episode.steps_to_success, "episode_ends": end}
        with zarr.config.set({"array.write_empty_chunks": True}), self._zarr("cannot be written"):
            for name, values in rows.items():
                self._array(name).append(np.asarray(values))
            for name, value in meta.items():
                self._array(f"meta/{name}").append(np.array([value], np.int64))

    def _drop_uncommitted(self) -> None:
        self._resize("meta", self.num_episodes, ("episode_ends", "seed", "steps_to_success"))
        self._resize("data", self.num_steps, ("action", "executed_action", *(f"obs/{k}" for k in self.obs_keys)))

    def _resize(self, group: str, length: int, names: Sequence[str]) -> None:
        for name in names:
            array = self._array(f"{group}/{name}")
            if array.shape[0] < length:
                raise DataError(f"{self.path} is damaged: {group}/{name} has {array.shape[0]} of {length} rows.")
            if array.shape[0] > length:
                array.resize((length, *array.shape[1:]))
            # Appending rewrites the last chunk. If that chunk is lost, its rows would become fill values.
            self._check_chunks(f"{group}/{name}", array, length - length % array.chunks[0], length)

    def _array(self, name: str) -> zarr.Array:
        with self._zarr("is damaged"):
            regular = (self.path / name / "zarr.json").is_file()
            array = self._root.get(name) if regular else None
            if not isinstance(array, zarr.Array):
                raise no_array(str(self.path), name)
            kind = "int64" if name.startswith("meta/") else "uint8" if array.ndim == 4 else "float32"
            check_array(str(self.path), name, array, kind)
            return array

    def _meta(self, name: str) -> NDArray[np.int64]:
        return self._read(f"meta/{name}", 0, self.num_episodes)

    def _read(self, name: str, start: int = 0, end: int | None = None) -> NDArray[Any]:
        """Rows of an array. Raises DataError if any of them was never written."""
        array = self._array(name)
        end = array.shape[0] if end is None else end
        self._check_chunks(name, array, start, end)
        with self._zarr(f"is damaged at {name}"):
            return np.asarray(array[start:end], array.dtype)

    def _check_chunks(self, name: str, array: zarr.Array, start: int, end: int) -> None:
        # Older stores, without checksums, have no file for a chunk of zeros, such as that of a single seed 0.
        zeros = name == "meta/seed" and not has_checksum(array) and array.shape[0] >= end
        if zeros and not chunk_file(self.path, name, array, start).exists():
            return
        check_chunks(str(self.path), name, array, self.path, start, end)

    def _steps(self, name: str, ends: NDArray[np.int64], index: int | None = None) -> NDArray[Any]:
        """Rows of data/`name`, for all episodes or one. Raises DataError if a number is not finite."""
        first, last = (0, len(ends)) if index is None else (index, index + 1)
        start, end = (int(ends[i - 1]) if i else 0 for i in (first, last))
        rows = self._read(f"data/{name}", start, end)
        bad = first_not_finite(rows) if rows.dtype == np.float32 else None
        if bad is not None:
            episode = int(np.searchsorted(ends, start + bad, side="right"))
            step = start + bad - (int(ends[episode - 1]) if episode else 0)
            raise DataError(
                f"{self.path}: episode {episode} holds {rows[bad][~np.isfinite(rows[bad])][0]} at step {step} of "
                f"{name!r}: its steps are missing from data/{name}, or were written by others; expected finite numbers."
            )
        return rows

    @contextmanager
    def _zarr(self, trouble: str) -> Iterator[None]:
        """Turn every error of zarr and its codecs into a DataError."""
        try:
            yield
        except AsdPolicyError:
            raise
        except Exception as error:
            raise DataError(f"{self.path} {trouble}: {type(error).__name__}: {error}.") from error


def _obs_keys(path: Path, keys: Any) -> tuple[str, ...]:
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or not 1 <= len(set(keys)) == len(keys) <= MAX_KEYS:
        raise DataError(f"{path} is damaged: its attribute obs_keys is {str(keys)[:200]}; expected names, each once.")
    for key in keys:
        check_key(str(path), key)
    return tuple(keys)


def _action_kind(attrs: Mapping[str, Any]) -> Any:
    """The kind of actions: the store's attribute, or in stores without one the kind that the environment takes."""
    env, kind = attrs.get("env_id"), attrs.get("action_kind")
    return kind if kind is not None else "pose" if isinstance(env, str) and takes_poses(env) else "delta"


def _create(root: zarr.Group, name: str, row_shape: tuple[int, ...], dtype: str) -> None:
    # Unwritten rows read as the fill value. For numbers it is NaN, so that it never looks like data.
    if dtype == "uint8":
        rows, fill = CHUNK_IMAGES, 0.0
    else:
        rows, fill = (CHUNK_STEPS, np.nan) if name.startswith("data/") else (CHUNK_EPISODES, 0.0)
    shape, chunks, packed = (0, *row_shape), (rows, *row_shape), ZstdCodec(level=0, checksum=True)
    root.create_array(name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, compressors=packed)
