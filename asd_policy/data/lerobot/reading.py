"""Reads a LeRobotDataset of version 2.x or 3.0: vectors from Parquet, images from MP4 or Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.data.dataset import UNKNOWN_ENV, Choice, DatasetFormat, Rows, read_episodes
from asd_policy.data.gate import Demonstration, Gate, check_clippable, check_step_shape, clip_deltas
from asd_policy.data.lazy_images import LazyImages
from asd_policy.data.lerobot.images import ParquetImages, VideoImages, image_reader
from asd_policy.data.lerobot.layout import Episode, Feature, Layout
from asd_policy.data.lerobot.own import EXECUTED, Own
from asd_policy.data.lerobot.parquet import read_table
from asd_policy.errors import DataError, UnknownNameError

STATE, ENV_STATE, IMAGES = (
    "observation.state",
    "observation.environment_state",
    ("observation.image", "observation.images."),
)
ACTION = "action"
INDEX = ("episode_index", "frame_index", "timestamp", "index", "task_index")
"""Columns of every dataset."""
TIME_TOLERANCE = 1e-3  # seconds


class LeRobotDataset:
    """A dataset, opened for reading. It implements `asd_policy.data.dataset.Dataset`.

    Attributes:
        layout: its metadata.
    """

    def __init__(self, path: Path, choice: Choice):
        choice.check_no_hdf5(path)
        self.path, self.layout = path, Layout.read(path)
        self._own = Own.read(self.layout)
        self.fps: float | None = self.layout.fps
        self._action_key = choice.action_key or ACTION
        self._action = self._feature(self._action_key)
        self.action_dim = self._action.shape[0]
        self._columns = self._observations(choice.obs_keys)
        self.obs_shapes = {key: shape for key, (_, shape, _) in self._columns.items()}
        attrs = self._own.attrs if self._own else {}
        kind = attrs.get("action_kind") if self._action_key == ACTION else None
        self.action_kind = str(kind) if kind is not None else "other"
        self.env_id = choice.env_id or str(attrs.get("env_id") or self.layout.robot_type or UNKNOWN_ENV)
        if choice.clip_actions:
            check_clippable(str(path), self.action_kind)
        self._clip, self._clipped = choice.clip_actions, dict[str, str]()
        self._gate = Gate(str(path), self.obs_shapes, self.action_dim, self.action_kind)
        self._readers: dict[str, VideoImages | ParquetImages] = {}
        self._loaded: tuple[str, dict[str, NDArray[Any]]] | None = None
        self._by_name = {episode.name: episode for episode in self.layout.episodes}
        self._in_file: dict[str, list[Episode]] = {}
        for episode in self.layout.episodes:
            self._in_file.setdefault(episode.data, []).append(episode)
        self._starts = np.cumsum([0, *(episode.length for episode in self.layout.episodes)])

    @classmethod
    def open(cls, path: Path, choice: Choice) -> LeRobotDataset:
        """Open a dataset in a folder.

        Raises:
            UnknownNameError: if an observation or the action is not in the dataset.
            ConfigError: if pyarrow is not installed, or on `clip_actions` of actions that are no deltas.
            DataError: if its metadata are missing or damaged.
        """
        return cls(path, choice)

    @property
    def names(self) -> Sequence[str]:
        return list(self._by_name)

    @property
    def notes(self) -> tuple[str, ...]:
        layout, said = self.layout, self._own.attrs.get("notes") if self._own else None
        notes = [str(note) for note in said] if isinstance(said, list) else []
        notes.append(
            f"Recorded at {layout.fps:g} Hz. Steps are not resampled: n_obs_steps, horizon and n_action_steps count "
            f"steps of {1 / layout.fps:.4g} s."
        )
        if layout.tasks > 1:
            notes.append(f"The dataset has {layout.tasks} tasks. A policy is not told which; it learns all of them.")
        return *dict.fromkeys(notes), *self._clipped.values()

    @property
    def attrs(self) -> Mapping[str, Any]:
        own = {"env_id": self.env_id, "action_kind": self.action_kind}
        if self._own is not None:
            return {**self._own.attrs, **own}
        return {**own, "source": self.path.name, "fps": self.fps}

    def episode(self, name: str) -> Demonstration:
        """One episode. Its images are lazy.

        Raises:
            DataError: if files or frames are missing, or a number is not finite; the message names episode and frame.
        """
        episode = self._by_name[name]
        rows, where = self._rows(episode), f"{self.path}: {name}"
        action = self._matrix(rows, self._action_key)
        if self._clip:
            action, note = clip_deltas(where, action.astype(np.float32))
            if note is not None:
                self._clipped[name] = note
        executed = self._matrix(rows, EXECUTED) if EXECUTED in rows else action
        obs = {key: self._observation(episode, rows, key) for key in self.obs_shapes}
        seed, steps = episode.index, len(action)
        if self._own is not None:
            seed, steps = self._own.seeds[episode.index], self._own.steps_to_success[episode.index]
        return self._gate.admit(Demonstration(seed, obs, action, executed, steps), name)

    def read(self, episodes: int) -> Rows:
        """The first episodes. Raises DataError as `episode`."""
        return read_episodes(self, episodes)

    def close(self) -> None:
        """Nothing stays open but videos, which close with their readers."""

    def _feature(self, name: str) -> Feature:
        """A feature of vectors of one axis."""
        vectors = {key: feature for key, feature in self.layout.features.items() if not feature.is_image}
        if name not in vectors:
            raise UnknownNameError(f"vector of {self.path}", name, [key for key in vectors if key not in INDEX])
        if len(vectors[name].shape) != 1:
            raise DataError(f"{self.path}: {name!r} has steps of shape {vectors[name].shape}; expected (D,).")
        return vectors[name]

    def _observations(self, wanted: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...], int]]:
        """Observation key -> its column, its shape, and its first entry in the column."""
        known: dict[str, tuple[str, tuple[int, ...], int]] = {}
        if self._own is not None:
            for column, parts in self._own.columns.items():
                first = 0
                for key, size in parts.items():
                    known[key] = column, (size,), first
                    first += size
            known |= {key: (column, self.layout.features[column].shape, 0) for column, key in self._own.images.items()}
            default = list(self._own.obs_keys)
        else:
            usable = {
                key: feature for key, feature in self.layout.features.items() if key not in (*INDEX, self._action_key)
            }
            known = {key: (key, feature.shape, 0) for key, feature in usable.items()}
            default = _defaults(known)
        for key in wanted:
            if key not in known:
                raise UnknownNameError(f"observation of {self.path}", key, known)
        chosen = {key: known[key] for key in wanted or default}
        if not chosen:
            raise DataError(
                f"{self.path} has no observations; it has {', '.join(self.layout.features)}. Name some (--obs-keys)."
            )
        for key, (_, shape, _) in chosen.items():
            check_step_shape(str(self.path), key, shape)
        return chosen

    def _observation(self, episode: Episode, rows: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any] | LazyImages:
        column, shape, first = self._columns[key]
        if len(shape) == 1:
            return self._matrix(rows, column)[:, first : first + shape[0]]
        if column not in self._readers:
            self._readers[column] = image_reader(self.layout, column)
        return LazyImages(self._readers[column], self._starts[episode.index] + np.arange(episode.length))

    @staticmethod
    def _matrix(rows: Mapping[str, NDArray[Any]], column: str) -> NDArray[Any]:
        values = rows[column]
        return values[:, None] if values.ndim == 1 else values

    def _rows(self, episode: Episode) -> dict[str, NDArray[Any]]:
        """The columns of one episode, after checks of its indices and times."""
        if self._loaded is None or self._loaded[0] != episode.data:
            self._loaded = episode.data, self._load(episode.data)
        table = self._loaded[1]
        begin = int(self._starts[episode.index] - self._starts[self._in_file[episode.data][0].index])
        rows = {name: values[begin : begin + episode.length] for name, values in table.items()}
        self._check_rows(episode, rows)
        return rows

    def _load(self, file: str) -> dict[str, NDArray[Any]]:
        sizes = dict.fromkeys(INDEX, 1)
        columns = [self._action_key, *(column for column, shape, _ in self._columns.values() if len(shape) == 1)]
        if self._own is not None and self._action_key == ACTION and EXECUTED in self.layout.features:
            columns.append(EXECUTED)
        table = read_table(self.path, file, sizes | {name: self._feature(name).shape[0] for name in columns})
        episodes = self._in_file[file]
        expected, got = sum(episode.length for episode in episodes), len(table["index"])
        if got != expected:
            last = next((e for e in episodes if (table["episode_index"] == e.index).sum() != e.length), episodes[-1])
            found = int((table["episode_index"] == last.index).sum())
            raise DataError(
                f"{self.path}: {file} has {got} rows, but its episodes have {expected}: {last.name} has {found} of "
                f"{last.length}, so frame {min(found, last.length)} is the first that is missing or one too many."
            )
        return table

    def _check_rows(self, episode: Episode, rows: Mapping[str, NDArray[Any]]) -> None:
        """Raise DataError unless the rows are the episode's, numbered without gaps, at the dataset's rate."""
        count = np.arange(episode.length)
        expected = {
            "episode_index": np.full(episode.length, episode.index),
            "frame_index": count,
            "index": self._starts[episode.index] + count,
        }
        for name, values in expected.items():
            _check_integers(f"{self.path}: {episode.name}", name, rows[name])
            if (bad := np.flatnonzero(rows[name] != values)).size:
                frame = int(bad[0])
                raise DataError(
                    f"{self.path}: {episode.name} has {name} {rows[name][frame]} at frame {frame}; expected "
                    f"{values[frame]}. Rows are missing, or in another order."
                )
        _check_integers(f"{self.path}: {episode.name}", "task_index", rows["task_index"])
        if (bad := np.flatnonzero((rows["task_index"] < 0) | (rows["task_index"] >= self.layout.tasks))).size:
            raise DataError(
                f"{self.path}: {episode.name} has task_index {rows['task_index'][bad[0]]} at frame {bad[0]}; its tasks "
                f"are 0 to {self.layout.tasks - 1}."
            )
        self._check_times(episode, rows["timestamp"])

    def _check_times(self, episode: Episode, times: NDArray[Any]) -> None:
        """Raise DataError unless the steps are at the dataset's rate."""
        fps, count = self.layout.fps, np.arange(episode.length)
        tolerance = min(TIME_TOLERANCE + count[-1] / fps * 1e-6, 0.25 / fps)  # times are float32
        late = ~(np.abs(times - count / fps) <= tolerance)
        if late.any():
            frame = int(np.flatnonzero(late)[0])
            raise DataError(
                f"{self.path}: {episode.name} has timestamp {times[frame]:.6g} s at frame {frame}; expected "
                f"{frame / fps:.6g} s at the {fps:g} Hz that meta/info.json says. Steps are not resampled."
            )


def _check_integers(where: str, name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind not in "iu":
        raise DataError(f"{where}: {name} has type {values.dtype}; expected integers.")


def _defaults(known: Mapping[str, tuple[str, tuple[int, ...], int]]) -> list[str]:
    """The observations of lerobot's diffusion policies: the state, the environment's state and all images."""
    found = [key for key in (STATE, ENV_STATE) if key in known]
    return found + [key for key, (_, shape, _) in known.items() if key.startswith(IMAGES) and len(shape) == 3]


LEROBOT = DatasetFormat(
    "lerobot",
    "a folder or repository of the hub with meta/info.json (LeRobotDataset)",
    lambda path: (path / "meta" / "info.json").is_file(),
    LeRobotDataset.open,
)
