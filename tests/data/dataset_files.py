"""Datasets of each format for tests, and changes to a LeRobotDataset's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from asd_policy.data.store import Demonstration, EpisodeStore

LEROBOT = Path(__file__).parent / "lerobot"
"""Datasets that lerobot has made; see make.py there."""

SIDE = 40  # pixels
LENGTHS = (30, 22, 25)


def pictures(steps: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images (T, SIDE, SIDE, 3), each different."""
    y, x = np.mgrid[:SIDE, :SIDE]
    made = [np.stack([x + 3 * t, y + 40 * seed, x * y + t], axis=-1) % 256 for t in range(steps)]
    return np.stack(made).astype(np.uint8)


def store(path: Path) -> Path:
    """Our store with vectors and images, and exploration noise."""
    shapes = {"robot0_eef_pos": (3,), "front_image": (SIDE, SIDE, 3), "object": (14,), "grip": (1,)}
    rng = np.random.default_rng(0)
    made = EpisodeStore.create(path, shapes, 7, {"env_id": "asd/Square-v0", "kept": {"a": [1, 2]}})
    for seed, steps in enumerate(LENGTHS):
        vectors = {key: rng.normal(size=(steps, *shape)).astype(np.float32) for key, shape in shapes.items()}
        action = rng.uniform(-0.9, 0.9, (steps, 7)).astype(np.float32)
        obs = {**vectors, "front_image": pictures(steps, seed)}
        made.append(Demonstration(100 + seed, obs, action, action + 0.05, steps - seed))
    made.close()
    return path


def replay_buffer(path: Path, dtype: str = "uint8") -> Path:
    """A replay buffer of real-stanford's, as a folder or a `.zip` file."""
    target: Any = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else path
    root = zarr.open_group(target, mode="w", zarr_format=2)
    rng, ends = np.random.default_rng(0), np.cumsum(LENGTHS)
    values = {
        "data/img": np.concatenate([pictures(steps, seed) for seed, steps in enumerate(LENGTHS)]).astype(dtype),
        "data/state": rng.normal(size=(ends[-1], 5)).astype(np.float32),
        "data/keypoint": rng.normal(size=(ends[-1], 9, 2)).astype(np.float32),
        "data/action": rng.uniform(0, 512, (ends[-1], 2)).astype(np.float32),
        "data/timestamp": np.arange(ends[-1], dtype=np.float64),
        "meta/episode_ends": ends,
    }
    for name, rows in values.items():
        chunks = (16, *rows.shape[1:-1], -(-rows.shape[-1] // 2)) if rows.ndim > 1 else (16,)
        packed = numcodecs.Blosc("zstd", 5, 2)
        array = root.create_array(name, shape=rows.shape, chunks=chunks, dtype=rows.dtype, compressors=packed)
        array[:] = rows
    if path.suffix == ".zip":
        target.close()
    return path


def other_robot(path: Path) -> Path:
    """An HDF5 file in robomimic's layout of a robot with 9 joints."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, steps in enumerate(LENGTHS):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = rng.normal(size=(steps, 9))
            demo["obs/joints"] = rng.normal(size=(steps, 9))
            demo["obs/cube"] = rng.normal(size=(steps, 7))
            demo["obs/front"] = pictures(steps, number)
    return path


def lerobot(path: Path, kind: str = "v3_video") -> Path:
    """A dataset that lerobot has made."""
    shutil.copytree(LEROBOT / kind, path)
    return path


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_table(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Change the columns of a Parquet file, as lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)
