"""Write an episode store as a LeRobotDataset of version 3.0, which lerobot reads.

Examples:

    asd-policy data export data/square.zarr --out data/square_lerobot
    asd-policy data export data/images.zarr --out data/images_lerobot --video

`asd-policy train` and `asd-policy data import` read the result, too. Without --video they get the same numbers and
pixels back, bit for bit.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from asd_policy.cli import COMPLETE
from asd_policy.data.lerobot.writing import export_lerobot
from asd_policy.data.store import EpisodeStore


@dataclass(frozen=True)
class Arguments:
    """The store, and where to write it."""

    path: tyro.conf.Positional[Path]
    """An episode store. `asd-policy data import` makes one of other formats."""
    out: Path
    """Folder to make."""
    fps: float | None = None
    """Steps per second. By default the store's own, or the 20 of our environments."""
    task: str | None = None
    """The task in words, which lerobot keeps with each step. By default the environment's name."""
    video: bool = False
    """Write images as AV1 videos, which are small but lose detail. By default they are PNG inside of the Parquet
    files."""


def main(arguments: Arguments) -> int:
    """Write the dataset. Raises DataError or ConfigError on failure."""
    store = EpisodeStore.open(arguments.path)
    export_lerobot(store, arguments.out, arguments.fps, arguments.task, arguments.video)
    print(f"Wrote {arguments.out}: {store.num_episodes} episodes, {store.num_steps} steps")
    return COMPLETE
