"""Our episode store as a dataset to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.dataset import Choice, DatasetFormat, Rows
from asd_policy.data.gate import Demonstration
from asd_policy.data.lazy_images import LazyImages
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError


class StoredEpisodes:
    """An episode store, opened for reading. It implements `asd_policy.data.dataset.Dataset`."""

    def __init__(self, store: EpisodeStore, choice: Choice):
        choice.check_no_hdf5(store.path)
        if choice.action_key not in (None, "action"):
            raise ConfigError(f"{store.path}: action_key is {choice.action_key!r}; a store has 'action' alone.")
        self.store, self.path, self._choice = store, store.path, choice
        for key in choice.obs_keys:
            if key not in store.obs_keys:
                raise UnknownNameError(f"observation of {store.path}", key, store.obs_keys)
        shapes = store.obs_shapes
        self.obs_shapes = {key: shapes[key] for key in choice.obs_keys or store.obs_keys}
        self.action_dim, self.action_kind = store.action_dim, store.action_kind
        self.env_id = self._env_id()
        fps = store.attrs.get("fps")
        self.fps = float(fps) if isinstance(fps, int | float) else None
        said = store.attrs.get("notes")
        self._notes = tuple(map(str, said)) if isinstance(said, list) else ()
        self._clipped: str | None = None

    @classmethod
    def open(cls, path: Path, choice: Choice) -> StoredEpisodes:
        """Open a store. Raises DataError if there is no sound store, ConfigError or UnknownNameError on the choice."""
        return cls(EpisodeStore.open(path), choice)

    @property
    def names(self) -> Sequence[str]:
        return [str(index) for index in range(self.store.num_episodes)]

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self._notes, self._clipped) if self._clipped else self._notes

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.store.attrs | {"env_id": self.env_id, "action_kind": self.action_kind}

    def episode(self, name: str) -> Demonstration:
        """One episode by its number. Raises DataError if it is damaged."""
        return self.store.episode(int(name))

    def read(self, episodes: int) -> Rows:
        """The first episodes, array by array. Raises DataError if steps are lost."""
        ends = self.store.episode_ends[:episodes]
        steps = int(ends[-1])
        labels, self._clipped = self.store.labels(self._choice.clip_actions)
        obs: dict[str, NDArray[Any] | LazyImages] = {}
        for key, shape in self.obs_shapes.items():
            if len(shape) == 3:
                obs[key] = LazyImages(StoredImages(self.store, key), np.arange(steps))
            else:
                obs[key] = self.store.obs(key)[:steps]
        return Rows(obs, labels[:steps], self.store.actions(executed=True)[:steps], ends)

    def close(self) -> None:
        self.store.close()

    def _env_id(self) -> str:
        env_id = self._choice.env_id or self.store.attrs.get("env_id")
        if not isinstance(env_id, str):
            raise DataError(
                f"{self.path}: its attribute env_id is {env_id!r}; expected the name of an environment. Pass one "
                "(--env-id)."
            )
        return env_id


class StoredImages:
    """The images of one observation of a store. It implements `asd_policy.data.lazy_images.ImageReader`.

    Raises:
        DataError: if images are lost.
    """

    compressed = False

    def __init__(self, store: EpisodeStore, key: str):
        store.check_images(key)
        self._store, self._key = store, key
        height, width, channels = store.obs_shapes[key]
        self.shape = height, width, channels

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `ImageReader.read`."""
        return self._store.read_images(self._key, rows)

    def fingerprint(self) -> None:
        """Images are hashed themselves, as in runs of earlier versions."""


STORE = DatasetFormat(
    "store",
    "a folder that asd-policy collect has made",
    lambda path: (path / "zarr.json").is_file(),
    StoredEpisodes.open,
)
