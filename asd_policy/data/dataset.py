"""What every dataset format offers: demonstrations that have passed the gate, and how they are found."""

from __future__ import annotations

import os
import shutil
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.gate import Demonstration
from asd_policy.data.lazy_images import LazyImages
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError
from asd_policy.plugins import protocol_members

UNKNOWN_ENV = "unknown"
"""The environment of datasets that do not name theirs."""


@dataclass(frozen=True)
class Choice:
    """Which parts of a dataset to read.

    Attributes:
        obs_keys: the observations, in the policy's order. If empty, the format's default.
        action_key: the array of actions. None is the format's default.
        env_id: the environment. None is the dataset's own.
        filter_key: the mask of an HDF5 file that selects demonstrations.
        absolute: read the target poses that an HDF5 file holds beside its delta actions.
        clip_actions: clip delta actions outside [-1, 1], with a note. Without it they are an error.
    """

    obs_keys: tuple[str, ...] = ()
    action_key: str | None = None
    env_id: str | None = None
    filter_key: str | None = None
    absolute: bool = False
    clip_actions: bool = False

    def check_no_hdf5(self, path: Path) -> None:
        """Raise DataError if an option for HDF5 files is set."""
        if self.filter_key is not None or self.absolute:
            raise DataError(
                f"{path} is not an HDF5 file: expected neither filter_key ({self.filter_key!r}) nor absolute "
                f"({self.absolute})."
            )


DEFAULTS = Choice()
"""The format's own choice of everything."""


class Rows(NamedTuple):
    """Episodes laid end to end: N steps of E episodes."""

    obs: dict[str, NDArray[Any] | LazyImages]  # (N, D) float32 or (N, H, W, C) uint8 per key
    action: NDArray[np.float32]  # (N, A)
    executed_action: NDArray[np.float32]  # (N, A)
    ends: NDArray[np.int64]  # (E,), one past the last step of each episode


class Dataset(Protocol):
    """Demonstrations of a folder or file, opened for reading.

    Attributes:
        path: where it is.
        names: the episodes' names, in order.
        obs_shapes: shape of each observation, (D,) or (H, W, C) for images, in the policy's order.
        action_dim: A.
        action_kind: a key of `asd_policy.data.gate.ACTION_KINDS`.
        env_id: the environment.
        fps: steps per second; None if the dataset does not say.
        notes: warnings to read before training on it. Reading an episode may add one.
        attrs: JSON values to keep with a copy of it.
    """

    path: Path
    obs_shapes: dict[str, tuple[int, ...]]
    action_dim: int
    action_kind: str
    env_id: str
    fps: float | None

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def attrs(self) -> Mapping[str, Any]: ...

    def episode(self, name: str) -> Demonstration:
        """One episode, which has passed the gate. Its images may be `LazyImages`. Raises DataError if it is damaged."""
        ...

    def read(self, episodes: int) -> Rows:
        """The first episodes. Raises DataError if one is damaged."""
        ...

    def close(self) -> None:
        """Close its files."""
        ...


@dataclass(frozen=True)
class DatasetFormat:
    """A dataset format: how it is recognised and read.

    Attributes:
        name: its key in `FORMATS`.
        told: where such a dataset is, in messages.
        recognises: whether a path holds such a dataset, judged by the files that are there. Reads no content beyond a
            file's signature. No two formats may recognise the same path.
        open: opens a dataset. Raises DataError, ConfigError or UnknownNameError.
    """

    name: str
    told: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, Choice], Dataset]


class DatasetFormats(UserDict[str, DatasetFormat]):
    """Formats by name. Add one with `FORMATS[format.name] = format`.

    Raises:
        ConfigError: on assigning an object that is not a format; the message names what is missing or wrong.
    """

    def __setitem__(self, name: str, item: DatasetFormat) -> None:
        if not isinstance(item, DatasetFormat) or item.name != name:
            got = getattr(item, "name", type(item).__name__)
            raise ConfigError(f"The dataset format {name!r} is {got!r}; expected a DatasetFormat of this name.")
        if not callable(item.recognises) or not callable(item.open):
            raise ConfigError(f"The dataset format {name!r} has no function `recognises` or `open`; expected both.")
        super().__setitem__(name, item)


def check_dataset(where: str, dataset: object) -> None:
    """Raise ConfigError unless an opened dataset has the members of `Dataset`."""
    wanted = {*protocol_members(Dataset)}
    missing = sorted(name for name in wanted if not hasattr(dataset, name))
    if missing:
        raise ConfigError(f"{where}: the {type(dataset).__name__} opened for it lacks {', '.join(missing)}.")


def read_episodes(dataset: Dataset, episodes: int) -> Rows:
    """Read the first episodes one by one."""
    read = [dataset.episode(name) for name in dataset.names[:episodes]]
    obs = {key: _joined([one.obs[key] for one in read]) for key in dataset.obs_shapes}
    action = np.concatenate([one.action for one in read])
    same = all(one.executed_action is one.action for one in read)
    executed = action if same else np.concatenate([one.executed_action for one in read])
    return Rows(obs, action, executed, np.cumsum([len(one.action) for one in read]).astype(np.int64))


def copy_to_store(dataset: Dataset, path: str | Path) -> EpisodeStore:
    """Copy all episodes into a new episode store. On failure no store is left.

    Raises:
        DataError: if the folder exists or cannot be written, or an episode fails a check.
    """
    path = Path(path)
    if path.exists():
        raise DataError(f"{path} exists already: open it, or choose another path.")
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    store = EpisodeStore.create(partial, dataset.obs_shapes, dataset.action_dim, dataset.attrs)
    try:
        for name in dataset.names:
            store.append(dataset.episode(name))
        store.update_attrs(notes=list(dataset.notes))
    except BaseException:
        store.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    store.close()
    os.replace(partial, path)
    return EpisodeStore.open(path, writable=True)


def _joined(parts: Sequence[Any]) -> NDArray[Any] | LazyImages:
    if isinstance(parts[0], LazyImages):
        return LazyImages.joined(parts)
    rows: NDArray[Any] = np.concatenate(parts)
    return rows
