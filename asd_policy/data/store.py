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
"""

import fcntl
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray

from asd_policy.errors import DataError

FORMAT_VERSION = 1
CHUNK_STEPS = 8192
CHUNK_IMAGES = 64
CHUNK_EPISODES = 4096


@dataclass(frozen=True)
class Episode:
    """One demonstration of T steps.

    Attributes:
        seed: of the environment's reset; for demonstrations from elsewhere, their number.
        obs: (T, D) float32 or (T, H, W, C) uint8 per key, each row seen before the action of its step.
        action: (T, A) float32, the expert's action.
        executed_action: (T, A) float32, what the environment was given.
        steps_to_success: steps until success was first seen.
    """

    seed: int
    obs: Mapping[str, NDArray[Any]]
    action: NDArray[np.float32]
    executed_action: NDArray[np.float32]
    steps_to_success: int


class EpisodeStore:
    """Episodes on disk; make one with `create` or `open`.

    A writer keeps other writers out until `close()`, or until it is forgotten.
    """

    def __init__(self, root: zarr.Group, path: Path, writable: bool):
        self._root = root
        self.path = path
        self.obs_keys: tuple[str, ...] = tuple(root.attrs["obs_keys"])
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
            attrs: whatever describes the collection (JSON values).
        """
        path = Path(path)
        if path.exists():
            raise DataError(f"{path} exists already: open it, or choose another path.")
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
        try:
            root = zarr.open_group(path, mode="r+" if writable else "r")
        except (OSError, ValueError, zarr.errors.BaseZarrError) as error:
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
        self._root.attrs.update(values)

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """(E,) one past the last step of each committed episode."""
        ends = np.asarray(self._array("meta/episode_ends")[:], np.int64)
        # A commit that was cut off between growing the array and writing into it leaves a zero at its end.
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
        return self._steps(f"obs/{key}", 0, self.num_steps)

    def actions(self, executed: bool = False) -> NDArray[np.float32]:
        """(N, A) the expert's actions over all committed steps, or those that were executed."""
        return self._steps("executed_action" if executed else "action", 0, self.num_steps)

    def episode(self, index: int) -> Episode:
        """One episode, by its position in the store."""
        ends = self.episode_ends
        if not 0 <= index < len(ends):
            raise DataError(f"No episode {index} in {self.path}: it holds {len(ends)}.")
        start, end = int(ends[index - 1]) if index else 0, int(ends[index])
        return Episode(
            seed=int(self.seeds[index]),
            obs={key: self._steps(f"obs/{key}", start, end) for key in self.obs_keys},
            action=self._steps("action", start, end),
            executed_action=self._steps("executed_action", start, end),
            steps_to_success=int(self.steps_to_success[index]),
        )

    def append(self, episode: Episode) -> None:
        """Add one episode and commit it."""
        rows = self._checked_rows(episode)
        end = self.num_steps + len(episode.action)
        for name, values in rows.items():
            self._array(name).append(values)
        self._array("meta/seed").append(np.array([episode.seed], np.int64))
        self._array("meta/steps_to_success").append(np.array([episode.steps_to_success], np.int64))
        self._array("meta/episode_ends").append(np.array([end], np.int64))

    def _checked_rows(self, episode: Episode) -> dict[str, NDArray[Any]]:
        if set(episode.obs) != set(self.obs_keys):
            raise DataError(f"Got observation keys {sorted(episode.obs)}, expected {list(self.obs_keys)}.")
        rows = {f"data/obs/{key}": episode.obs[key] for key in self.obs_keys}
        rows |= {"data/action": episode.action, "data/executed_action": episode.executed_action}
        for name, values in rows.items():
            array = self._array(name)
            expected, image = (len(episode.action), *array.shape[1:]), array.dtype == np.uint8
            fits = len(values) > 0 and values.shape == expected and (values.dtype == np.uint8) == image
            if not fits or not np.isfinite(values).all():
                raise DataError(
                    f"Episode of seed {episode.seed}: {name} has shape {values.shape} and type {values.dtype}, "
                    f"expected {expected} with at least one step and {'bytes' if image else 'finite values'}."
                )
        return {name: np.asarray(values, self._array(name).dtype) for name, values in rows.items()}

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

    def _array(self, name: str) -> zarr.Array:
        array = self._root.get(name)
        if not isinstance(array, zarr.Array):
            raise DataError(f"{self.path} is damaged: it has no array {name}.")
        return array

    def _meta(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self._array(f"meta/{name}")[: self.num_episodes], np.int64)

    def _steps(self, name: str, start: int, end: int) -> NDArray[Any]:
        array = self._array(f"data/{name}")
        steps = np.asarray(array[start:end], array.dtype)
        written = steps.any(axis=(1, 2, 3)) if steps.dtype == np.uint8 else np.isfinite(steps)
        if len(steps) != end - start or not written.all():
            raise DataError(f"{self.path} is damaged: steps are missing from data/{name}.")
        return steps


def _lock(path: Path) -> int:
    """A descriptor that shuts other writers of the store out until it is closed."""
    never_rewritten = path / "meta" / "zarr.json"
    try:
        descriptor = os.open(never_rewritten, os.O_RDWR)  # NFS locks only what may be written
    except OSError as error:
        raise DataError(f"{path} is damaged or write-protected: {error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DataError(f"Another process is writing {path}. Wait for it, or choose another folder.") from error
    return descriptor


def _create(root: zarr.Group, name: str, row_shape: tuple[int, ...], dtype: str) -> None:
    # What was never written, or whose file is gone, reads as the fill value: never as plausible data. Of images that is
    # a black frame.
    if dtype == "uint8":
        rows, fill = CHUNK_IMAGES, 0.0
    else:
        rows, fill = (CHUNK_STEPS, np.nan) if name.startswith("data/") else (CHUNK_EPISODES, 0.0)
    root.create_array(name, shape=(0, *row_shape), chunks=(rows, *row_shape), dtype=dtype, fill_value=fill)
