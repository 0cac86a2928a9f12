"""Inspect a dataset of demonstrations in any known format, or convert it to an episode store.

Examples:

    asd-policy data import low_dim_v15.hdf5 --inspect
    asd-policy data import low_dim_v15.hdf5 --filter-key train --out data/human.zarr
    asd-policy data import pusht_cchi_v7_replay.zarr --obs-keys img state --out data/pusht.zarr
    asd-policy data import lerobot/pusht --inspect

`asd-policy train` also reads them directly.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from asd_policy.cli import COMPLETE
from asd_policy.data.dataset import Choice, Dataset, copy_to_store
from asd_policy.data.formats import open_dataset
from asd_policy.data.gate import ACTION_KINDS
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """The dataset, and what to do with it."""

    path: tyro.conf.Positional[Path]
    """An HDF5 file in robomimic's layout, a replay buffer of real-stanford's (.zarr or .zarr.zip), a LeRobotDataset (a
    folder, or a repository of the Hugging Face hub), or an episode store."""
    out: Path | None = None
    """Folder of the store to make."""
    inspect: bool = False
    """Only show the contents."""
    filter_key: str | None = None
    """A mask in an HDF5 file, such as train. All demonstrations by default."""
    absolute: bool = False
    """Convert the target poses that an HDF5 file holds beside its delta actions."""
    obs_keys: tuple[str, ...] = ()
    """Observations to convert, vectors or images. The default depends on the format; --inspect shows it."""
    action_key: str | None = None
    """Array of actions. By default action, or actions in an HDF5 file."""
    env_id: str | None = None
    """The environment, if the dataset does not name it."""
    clip_actions: bool = False
    """Clip delta actions outside [-1, 1], with a note. Without this option they are an error."""


def main(arguments: Arguments) -> int:
    """Show the dataset, and convert it if requested. Raises DataError or ConfigError on failure."""
    console = Console()
    if (arguments.out is None) != arguments.inspect:
        raise ConfigError("Pass either --inspect or --out FOLDER.")
    choice = Choice(
        arguments.obs_keys,
        arguments.action_key,
        arguments.env_id,
        arguments.filter_key,
        arguments.absolute,
        arguments.clip_actions,
    )
    dataset = open_dataset(arguments.path, choice)
    try:
        console.print(_table(dataset))
        if arguments.out is not None:
            store = copy_to_store(dataset, arguments.out)
            wrote = f"Wrote {store.path}: {store.num_episodes} episodes, {store.num_steps} steps"
            console.print(wrote, soft_wrap=True, highlight=False)
        for note in dataset.notes:
            console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    finally:
        dataset.close()
    return COMPLETE


def _table(dataset: Dataset) -> Table:
    shown = Table("", "found", title=str(dataset.path))
    recording = dataset.recording if isinstance(dataset, RobomimicFile) else None
    shown.add_row("environment", f"{recording.env_name} -> {dataset.env_id}" if recording else dataset.env_id)
    if recording:
        shown.add_row("robosuite", ".".join(map(str, recording.version)))
    shown.add_row("demonstrations", str(len(dataset.names)))
    if dataset.fps is not None:
        shown.add_row("rate", f"{dataset.fps:g} Hz")
    shown.add_row(
        "observations", ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in dataset.obs_shapes.items())
    )
    shown.add_row("actions", f"{dataset.action_dim}, {ACTION_KINDS[dataset.action_kind]}")
    return shown
