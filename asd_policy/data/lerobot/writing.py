"""Writes an episode store as a LeRobotDataset of version 3.0.

Vectors become one column, `observation.state`, which lerobot's policies expect. Keys that begin with "observation."
keep their columns. Images become PNG inside of the Parquet files, bit for bit, or AV1 videos, which lose detail.
`meta/asd_policy.json` holds what is needed to get the same store back.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asd_policy.checks import is_number
from asd_policy.data.gate import Demonstration
from asd_policy.data.lerobot.layout import OBSERVATION, PATHS
from asd_policy.data.lerobot.own import EXECUTED, FILE, Own
from asd_policy.data.lerobot.statistics import PixelCounts, Statistics, vector_statistics
from asd_policy.data.lerobot.video import VideoWriter
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError
from asd_policy.policies.tasks import is_ours

STATE, IMAGES, ACTION = "observation.state", "observation.images.", "action"
OUR_HZ = 20
"""Steps per second of our environments."""
DATA_MB, VIDEO_MB = 100, 200  # lerobot's sizes at which it begins a new file
INDEX = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def export_lerobot(
    store: EpisodeStore, out: Path, fps: float | None = None, task: str | None = None, video: bool = False
) -> None:
    """Write a store as a LeRobotDataset. On failure no folder is left.

    Args:
        out: a folder that does not exist yet.
        fps: steps per second. None is the store's own, or that of our environments.
        task: the task in words, which lerobot wants for each step. None is the environment's name.
        video: write images as AV1 videos, which are small but lose detail. Otherwise they are PNG.

    Raises:
        ConfigError: if the rate is unknown, observations would share a column, or a package is not installed.
        DataError: if the folder exists or cannot be written, or the store is empty or damaged.
    """
    if out.exists():
        raise DataError(f"{out} exists already: choose another path.")
    if store.num_episodes == 0:
        raise DataError(f"{store.path} has no episodes; expected at least one.")
    rate = _rate(store, fps)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writer = _Writer(store, partial, rate, task or str(store.attrs.get("env_id", "unknown")), video)
        writer.write()
        os.replace(partial, out)
    except OSError as error:
        raise DataError(f"Cannot write {out}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rate(store: EpisodeStore, fps: float | None) -> float:
    known = store.attrs.get("fps")
    if fps is None:
        fps = known if is_number(known) else OUR_HZ if is_ours(str(store.attrs.get("env_id"))) else None
    if fps is None or not 0 < fps < 1e6:
        raise ConfigError(f"{store.path}: its steps per second are {fps}; expected a number above 0. Pass it (--fps).")
    return float(fps)


def columns_of(store: EpisodeStore) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Column -> the store's vectors in it and their sizes; and image column -> the store's key.

    Raises:
        ConfigError: if two observations would share a column.
    """
    columns: dict[str, dict[str, int]] = {}
    images: dict[str, str] = {}
    for key, shape in store.obs_shapes.items():
        if len(shape) == 3:
            column = key if key.startswith(OBSERVATION) else IMAGES + key.removesuffix("_image").replace("/", "_")
            clash = column in images
            images[column] = key
        else:
            column = key if key.startswith(OBSERVATION) else STATE
            clash = column in columns and (column == key or column in columns[column])
            columns.setdefault(column, {})[key] = shape[0]
        if clash or "/" in column or (column in columns and column in images):
            raise ConfigError(
                f"{store.path}: the observation {key!r} does not fit into the column {column!r} beside "
                f"{', '.join(other for other in store.obs_shapes if other != key)}. Copy the store without it."
            )
    return columns, images


class _Writer:
    """Writes one dataset into a new folder."""

    def __init__(self, store: EpisodeStore, root: Path, fps: float, task: str, video: bool):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ConfigError(
                f"LeRobotDataset needs pyarrow (pip install 'asd-policy[lerobot-data]'): {error}."
            ) from error
        self._pa, self._pq = pa, pq
        self._store, self._root, self._fps, self._task, self._video = store, root, fps, task, video
        self._columns, self._images = columns_of(store)
        self._executed = not np.array_equal(store.actions(), store.actions(executed=True))
        self._pixels = {column: PixelCounts(store.obs_shapes[key][2]) for column, key in self._images.items()}
        self._episodes: list[dict[str, Any]] = []
        self._videos: dict[str, VideoWriter] = {}

    def write(self) -> None:
        """Write all files."""
        (self._root / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        data: Any = None
        try:
            for index in range(self._store.num_episodes):
                episode = self._store.episode(index)
                table, entry = self._episode(index, episode)
                if data is None or (self._root / data.name).stat().st_size > DATA_MB << 20:
                    data = _Rotating(self._root, data, self._pq, table.schema)
                data.writer.write_table(table)
                entry |= {"data/chunk_index": data.chunk, "data/file_index": data.file}
                self._episodes.append(entry)
        finally:
            if data is not None:
                data.writer.close()
            for writer in self._videos.values():
                writer.close()
        self._write_meta()

    def _episode(self, index: int, episode: Demonstration) -> tuple[Any, dict[str, Any]]:
        """The rows of an episode, and its entry in the table of episodes."""
        pa, steps = self._pa, len(episode.action)
        begin = self._episodes[-1]["dataset_to_index"] if self._episodes else 0
        count = np.arange(steps)
        values: dict[str, NDArray[Any]] = {
            column: np.concatenate([np.asarray(episode.obs[key]) for key in parts], axis=1)
            for column, parts in self._columns.items()
        }
        values[ACTION] = episode.action
        if self._executed:
            values[EXECUTED] = episode.executed_action
        values |= {
            "timestamp": (count / self._fps).astype(np.float32)[:, None],
            "frame_index": count[:, None],
            "episode_index": np.full((steps, 1), index),
            "index": begin + count[:, None],
            "task_index": np.zeros((steps, 1), np.int64),
        }
        entry: dict[str, Any] = {
            "episode_index": index,
            "tasks": [self._task],
            "length": steps,
            "dataset_from_index": begin,
            "dataset_to_index": begin + steps,
        }
        stats = {name: vector_statistics(rows) for name, rows in values.items()}
        arrays = {name: _arrow(pa, rows) for name, rows in values.items()}
        for column, key in self._images.items():
            images = np.asarray(episode.obs[key])
            stats[column] = self._count(column, images)
            if self._video:
                entry |= self._film(column, images)
            else:
                arrays[column] = _pngs(pa, images)
        entry |= {f"stats/{name}/{key}": value for name, found in stats.items() for key, value in found.items()}
        return pa.table(arrays), entry

    def _count(self, column: str, images: NDArray[np.uint8]) -> Statistics:
        counts = PixelCounts(images.shape[3])
        counts.add(images)
        self._pixels[column].merge(counts)
        return counts.statistics()

    def _film(self, column: str, images: NDArray[np.uint8]) -> dict[str, Any]:
        """Append an episode's images to the video of a column. Returns its place for the table of episodes."""
        writer = self._videos.get(column)
        if writer is None or writer.size > VIDEO_MB << 20:
            number = 0 if writer is None else writer.number + 1
            if writer is not None:
                writer.close()
            name = PATHS[3][1].format(video_key=column, chunk_index=number // 1000, file_index=number % 1000)
            writer = self._videos[column] = VideoWriter(self._root, name, number, self._fps, images.shape[1:])
        first = writer.frames
        writer.add(images)
        prefix = f"videos/{column}/"
        return {
            f"{prefix}chunk_index": writer.number // 1000,
            f"{prefix}file_index": writer.number % 1000,
            f"{prefix}from_timestamp": first / self._fps,
            f"{prefix}to_timestamp": writer.frames / self._fps,
        }

    def _features(self) -> dict[str, dict[str, Any]]:
        features: dict[str, dict[str, Any]] = {}
        for column, parts in self._columns.items():
            names = [f"{key}.{entry}" for key, size in parts.items() for entry in range(size)]
            features[column] = {"dtype": "float32", "shape": [len(names)], "names": names}
        for column, key in self._images.items():
            kind, names = "video" if self._video else "image", ["height", "width", "channels"]
            features[column] = {"dtype": kind, "shape": list(self._store.obs_shapes[key]), "names": names}
            if self._video:
                features[column]["info"] = self._videos[column].info()
        for column in (ACTION, EXECUTED) if self._executed else (ACTION,):
            features[column] = {"dtype": "float32", "shape": [self._store.action_dim], "names": None}
        return features | {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in INDEX.items()}

    def _write_meta(self) -> None:
        episodes, steps = len(self._episodes), self._store.num_steps
        for entry in self._episodes:
            entry |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        columns = {name: [entry[name] for entry in self._episodes] for name in self._episodes[0]}
        path = self._root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        self._pq.write_table(self._pa.table(columns), path)
        self._pq.write_table(_tasks(self._pa, self._task), self._root / "meta" / "tasks.parquet")
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": steps,
            "total_tasks": 1,
            "chunks_size": 1000,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": int(self._fps) if self._fps.is_integer() else self._fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": PATHS[3][0],
            "video_path": PATHS[3][1] if self._video else None,
            "features": self._features(),
        }
        own = Own(
            self._store.obs_keys,
            self._columns,
            self._images,
            tuple(self._store.seeds.tolist()),
            tuple(self._store.steps_to_success.tolist()),
            self._attrs(),
        )
        for name, values in (("meta/info.json", info), ("meta/stats.json", self._stats()), (FILE, own.to_dict())):
            (self._root / name).write_text(json.dumps(values, indent=2) + "\n")

    def _attrs(self) -> dict[str, Any]:
        own = ("format_version", "obs_keys", "action_dim")
        attrs = {name: value for name, value in self._store.attrs.items() if name not in own}
        return attrs | {"action_kind": self._store.action_kind, "fps": self._fps}

    def _stats(self) -> Mapping[str, Statistics]:
        store = self._store
        stats = {
            column: vector_statistics(np.concatenate([store.obs(key) for key in parts], axis=1))
            for column, parts in self._columns.items()
        }
        stats |= {column: counts.statistics() for column, counts in self._pixels.items()}
        stats[ACTION] = vector_statistics(store.actions())
        if self._executed:
            stats[EXECUTED] = vector_statistics(store.actions(executed=True))
        lengths = [entry["length"] for entry in self._episodes]
        frames = np.concatenate([np.arange(length) for length in lengths])
        index = {
            "timestamp": (frames / self._fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.repeat(np.arange(len(lengths)), lengths),
            "index": np.arange(len(frames)),
            "task_index": np.zeros(len(frames), np.int64),
        }
        return stats | {name: vector_statistics(values[:, None]) for name, values in index.items()}


class _Rotating:
    """The next data file."""

    chunk: int
    file: int
    writer: Any

    def __init__(self, root: Path, previous: _Rotating | None, pq: Any, schema: Any):
        number = 0 if previous is None else 1000 * previous.chunk + previous.file + 1
        if previous is not None:
            previous.writer.close()
        self.chunk, self.file = number // 1000, number % 1000
        self.name = PATHS[3][0].format(chunk_index=self.chunk, file_index=self.file)
        (root / self.name).parent.mkdir(parents=True, exist_ok=True)
        self.writer = pq.ParquetWriter(root / self.name, schema)


def _arrow(pa: Any, rows: NDArray[Any]) -> Any:
    """Rows (N, D) as an arrow array: of numbers if D is 1, else of lists."""
    flat = pa.array(np.ascontiguousarray(rows).ravel())
    return flat if rows.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def _pngs(pa: Any, images: NDArray[np.uint8]) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(f"Images need Pillow (pip install 'asd-policy[lerobot-data]'): {error}.") from error
    encoded = []
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG", compress_level=1)
        encoded.append({"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"})
    return pa.array(encoded, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _tasks(pa: Any, task: str) -> Any:
    """The table of tasks with pandas' note that the tasks are its index, by which lerobot finds them."""
    index = "__index_level_0__"
    said = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, field, kind, numpy in (
                ("task_index", "task_index", "int64", "int64"),
                (None, index, "unicode", "object"),
            )
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array([0], pa.int64()), index: pa.array([task], pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(said)})
