"""A zarr store of demonstration episodes that survives being cut off at any moment.

Layout (N steps in E episodes, episodes laid end to end):

    data/obs/<key>          (N, D) float32   observation before the step; an image is (N, H, W, C) uint8
    data/action             (N, A) float32   what the expert wanted: the label to learn
    data/executed_action    (N, A) float32   what was executed: the label plus exploration noise, clipped
    meta/episode_ends       (E,) int64       one past the last step of each episode
    meta/seed               (E,) int64       seed of the environment's reset
    meta/steps_to_success   (E,) int64       steps until the first success
    attributes              format_version, obs_keys, action_dim, and what the collector recorded

An episode is appended data first and its end last; the end is the commit. Steps past the last end belong to an
append that was cut off: readers never see them, and the next writer drops them. There is one writer at a time.

Every chunk is written, of black images too, with zstd's checksum: one that is lost is missing, one that is damaged does
not decompress.
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
    Episode,
    Gate,
    check_clippable,
    check_deltas,
    check_key,
    clip_deltas,
    first_beyond,
    first_not_finite,
)
from asd_policy.data.zarr_array import check_array, check_chunks, chunk_file, has_checksum, no_array
from asd_policy.errors import AsdPolicyError, DataError
from asd_policy.policies.tasks import takes_poses

__all__ = ["Episode", "EpisodeStore"]

FORMAT_VERSION = 1
CHUNK_STEPS = 8192
CHUNK_IMAGES = 64
CHUNK_EPISODES = 4096


class EpisodeStore:
    """Episodes on disk; make one with `create` or `open`.

    A writer keeps other writers out until `close()`, or until it is forgotten.
    """

    def __init__(self, root: zarr.Group, path: Path, writable: bool):
        self._root = root
        self.path = path
        self.obs_keys = _obs_keys(path, root.attrs.get("obs_keys"))
        self.action_kind = _action_kind(root.attrs)
        shapes = {key: tuple(self._array(f"data/obs/{key}").shape[1:]) for key in self.obs_keys}
        action_dim = int(self._array("data/action").shape[-1])
        self._gate = Gate(str(path), shapes, action_dim, self.action_kind)
        self._release = weakref.finalize(self, os.close, _lock(path)) if writable else None

    @classmethod
    def create(
        cls, path: str | Path, obs_shapes: Mapping[str, tuple[int, ...]], action_dim: int, attrs: Mapping[str, Any]
    ) -> "EpisodeStore":
        """A new, empty store.

        Args:
            path: a folder that does not exist yet.
            obs_shapes: observation keys and shapes, (D,) or of images (H, W, C), in the order the policy will see them.
            action_dim: size A of an action.
            attrs: whatever describes the collection (JSON values). `action_kind` says what actions are
                (`asd_policy.data.gate.ACTION_KINDS`); without it they are target poses if the name in `env_id` says so,
                else deltas.

        Raises:
            DataError: if the folder exists or cannot be made, or if observations of such names or shapes cannot be
                stored.
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
            # Attributes last: a store that was cut off before this line is not taken for a store.
            own = {"format_version": FORMAT_VERSION, "obs_keys": list(obs_shapes), "action_dim": action_dim}
            root.attrs.update({**attrs, **own})
        except OSError as error:
            raise DataError(f"Cannot make the store {path}: {error}. Choose another path, or make room.") from error
        return cls(root, path, writable=True)

    @classmethod
    def open(cls, path: str | Path, writable: bool = False) -> "EpisodeStore":
        """An existing store; safe for reading while another process appends to it.

        Args:
            path: its folder.
            writable: open for appending, which first drops what an interrupted append left behind.

        Raises:
            DataError: if there is no sound store, or another process is writing it.
        """
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise DataError(f"No episode store at {path}. Collect one first.")
        try:
            root = zarr.open_group(path, mode="r+" if writable else "r", use_consolidated=False)
        except Exception as error:  # whatever zarr makes of a damaged zarr.json
            raise DataError(f"No episode store at {path}: {error}. Collect one first.") from error
        version = root.attrs.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}, expected {FORMAT_VERSION}: collect it anew.")
        store = cls(root, path, writable)
        if writable:
            store._drop_uncommitted()
        return store

    def close(self) -> None:
        """Let another writer in, if this is one; it may not append any more."""
        if self._release is not None:
            self._release()

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of the store's attributes."""
        return self._root.attrs.asdict()

    def update_attrs(self, **values: Any) -> None:
        with self._zarr("cannot be written"):
            self._root.attrs.update(values)

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """(E,) one past the last step of each committed episode."""
        name = "meta/episode_ends"
        array = self._array(name)
        # A commit that was cut off between growing the array and writing into it leaves a zero at its end, or a chunk
        # of this one row that is not there.
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
        return len(self.episode_ends)

    @property
    def num_steps(self) -> int:
        ends = self.episode_ends
        return int(ends[-1]) if len(ends) else 0

    @property
    def seeds(self) -> NDArray[np.int64]:
        """(E,) the reset seed of each episode."""
        return self._meta("seed")

    @property
    def steps_to_success(self) -> NDArray[np.int64]:
        """(E,) steps to the first success in each episode."""
        return self._meta("steps_to_success")

    def obs(self, key: str) -> NDArray[Any]:
        """(N, D) float32 or (N, H, W, C) uint8, one observation key over all committed steps."""
        return self._steps(f"obs/{key}", self.episode_ends)

    def actions(self, executed: bool = False) -> NDArray[np.float32]:
        """(N, A) the expert's actions over all committed steps, or those that were executed."""
        return self._steps("executed_action" if executed else "action", self.episode_ends)

    def labels(self, clip: bool = False) -> tuple[NDArray[np.float32], str | None]:
        """(N, A) the expert's actions, in [-1, 1] if they are deltas; and a note if some had to be clipped to it.

        Args:
            clip: clip them; without it, one beyond is refused.

        Raises:
            ConfigError: if target poses are to be clipped.
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

    def episode(self, index: int) -> Episode:
        """One episode, by its position in the store."""
        ends = self.episode_ends
        if not 0 <= index < len(ends):
            raise DataError(f"No episode {index} in {self.path}: it holds {len(ends)}.")
        return Episode(
            seed=int(self._read("meta/seed", index, index + 1)[0]),
            obs={key: self._steps(f"obs/{key}", ends, index) for key in self.obs_keys},
            action=self._steps("action", ends, index),
            executed_action=self._steps("executed_action", ends, index),
            steps_to_success=int(self._read("meta/steps_to_success", index, index + 1)[0]),
        )

    def append(self, episode: Episode) -> None:
        """Add one episode and commit it.

        Raises:
            DataError: if it does not pass the gate (`asd_policy.data.gate`), if the rows that it would share a chunk
                with are lost, or if it cannot be written.
        """
        episode = self._gate.admit(episode, f"episode of seed {episode.seed}")
        self._drop_uncommitted()  # what an append before has left that failed
        end = self.num_steps + len(episode.action)
        rows = {f"data/obs/{key}": episode.obs[key] for key in self.obs_keys}
        rows |= {"data/action": episode.action, "data/executed_action": episode.executed_action}
        meta = {"seed": episode.seed, "steps_to_success": episode.steps_to_success, "episode_ends": end}
        with zarr.config.set({"array.write_empty_chunks": True}), self._zarr("cannot be written"):
            for name, values in rows.items():
                self._array(name).append(values)
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
            # Appending writes the last chunk anew: one that is lost would come back as fill values.
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
        """Rows of an array, all of which have been written."""
        array = self._array(name)
        end = array.shape[0] if end is None else end
        self._check_chunks(name, array, start, end)
        with self._zarr(f"is damaged at {name}"):
            return np.asarray(array[start:end], array.dtype)

    def _check_chunks(self, name: str, array: zarr.Array, start: int, end: int) -> None:
        # Stores from before checksums leave out a chunk of zeros: a first episode of seed 0 has no file for its seed.
        zeros = name == "meta/seed" and not has_checksum(array) and array.shape[0] >= end
        if zeros and not chunk_file(self.path, name, array, start).exists():
            return
        check_chunks(str(self.path), name, array, self.path, start, end)

    def _steps(self, name: str, ends: NDArray[np.int64], index: int | None = None) -> NDArray[Any]:
        """Rows of data/`name` of all episodes, or of one, which pass the gate."""
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
        """Whatever zarr and its codecs make of damage becomes a DataError."""
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
    """What actions are, as the store says; as the environment's name does in those that do not say."""
    env, kind = attrs.get("env_id"), attrs.get("action_kind")
    return kind if kind is not None else "pose" if isinstance(env, str) and takes_poses(env) else "delta"


def _lock(path: Path) -> int:
    """A descriptor that shuts other writers of the store out until it is closed."""
    try:
        import fcntl
    except ImportError as error:
        raise DataError(
            f"Writing {path} needs file locks (fcntl), which this system lacks: use Linux or macOS."
        ) from error
    never_rewritten = path / "meta" / "zarr.json"
    try:
        descriptor = os.open(never_rewritten, os.O_RDWR)  # NFS locks only what may be written
    except OSError as error:
        raise DataError(f"{path} is damaged or write-protected: {error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise DataError(f"Another process is writing {path}. Wait for it, or choose another folder.") from error
        raise DataError(f"{path} cannot be locked against other writers: {error}.") from error
    return descriptor


def _create(root: zarr.Group, name: str, row_shape: tuple[int, ...], dtype: str) -> None:
    # What was grown and never written reads as the fill value: of images a black frame, else never as plausible data.
    if dtype == "uint8":
        rows, fill = CHUNK_IMAGES, 0.0
    else:
        rows, fill = (CHUNK_STEPS, np.nan) if name.startswith("data/") else (CHUNK_EPISODES, 0.0)
    shape, chunks, packed = (0, *row_shape), (rows, *row_shape), ZstdCodec(level=0, checksum=True)
    root.create_array(name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, compressors=packed)
