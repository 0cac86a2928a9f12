"""The store that a collection fills: its settings, and the seeds already tried."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from asd_policy.collection.demonstration import Outcome
from asd_policy.collection.settings import Collection
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import DataError


def open_store(path: Path, collection: Collection) -> EpisodeStore:
    """Open the store to fill: a new one, or an existing one of the same collection.

    Raises:
        DataError: if the store was collected with other settings, or cannot be written.
    """
    settings = collection.attributes
    if not path.exists():
        kind = "delta" if collection.actions == "delta" else "pose"
        attributes = {**settings, "action_kind": kind, "failed_seeds": [], "versions": versions()}
        shapes = {key: (dim,) for key, dim in collection.task.obs_dims.items()}
        return EpisodeStore.create(path, shapes, collection.task.action_dim, attributes)
    store = EpisodeStore.open(path, writable=True)
    differing = {key: store.attrs.get(key) for key, value in settings.items() if store.attrs.get(key) != value}
    if differing:
        raise DataError(f"{path} was collected with {differing}; the requested settings are {settings}.")
    return store


def record(store: EpisodeStore, outcome: Outcome) -> None:
    """Append a demonstration to the store, or record the seed as failed."""
    if outcome.episode is None:
        store.update_attrs(failed_seeds=[*failed_seeds(store), outcome.seed])
    else:
        store.append(outcome.episode)


def failed_seeds(store: EpisodeStore) -> list[int]:
    """The seeds whose expert failed, in order."""
    return list(store.attrs["failed_seeds"])


def next_seed(store: EpisodeStore) -> int:
    """The seed after the last one that was tried."""
    tried = [*store.seeds.tolist(), *failed_seeds(store)]
    return max(tried) + 1 if tried else int(store.attrs["seed_start"])


def versions() -> dict[str, str]:
    """Versions of the packages that simulate the demonstrations."""
    packages = {name: version(name) for name in ("robosuite", "mujoco", "numpy", "gymnasium")}
    return {"python": platform.python_version(), **packages}
