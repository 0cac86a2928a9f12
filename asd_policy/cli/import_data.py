"""Inspect robomimic's HDF5 demonstrations, or convert them to an episode store.

Examples:

    asd-policy data import low_dim_v15.hdf5 --inspect
    asd-policy data import low_dim_v15.hdf5 --filter-key train --out data/human.zarr

`asd-policy train` also reads HDF5 files directly.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from asd_policy.cli import COMPLETE
from asd_policy.data.gate import ACTION_KINDS
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    """The file, and what to do with it."""

    path: tyro.conf.Positional[Path]
    """A robomimic HDF5 file with observations."""
    out: Path | None = None
    """Folder of the store to make."""
    inspect: bool = False
    """Only show the contents of the file."""
    filter_key: str | None = None
    """A mask in the file, such as train. All demonstrations by default."""
    absolute: bool = False
    """Convert the target poses that the file holds beside its delta actions."""
    obs_keys: tuple[str, ...] = ()
    """Observations to convert, vectors or images. By default the vectors that robomimic's policies use."""
    clip_actions: bool = False
    """Clip delta actions outside [-1, 1], with a note. Without this option they are an error."""


def main(arguments: Arguments) -> int:
    """Show the file, and convert it if requested. Raises DataError or ConfigError on failure."""
    console = Console()
    if (arguments.out is None) != arguments.inspect:
        raise ConfigError("Pass either --inspect or --out FOLDER.")
    options = arguments.filter_key, arguments.absolute, arguments.obs_keys, arguments.clip_actions
    with RobomimicFile.open(arguments.path, *options) as file:
        console.print(_table(file))
        if arguments.out is not None:
            store = file.to_store(arguments.out)
            wrote = f"Wrote {store.path}: {store.num_episodes} episodes, {store.num_steps} steps"
            console.print(wrote, soft_wrap=True, highlight=False)
        for note in file.notes:
            console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    return COMPLETE


def _table(file: RobomimicFile) -> Table:
    recording = file.recording
    shown = Table("", "found", title=str(file.path))
    shown.add_row("environment", f"{recording.env_name} -> {file.env_id}")
    shown.add_row("robosuite", ".".join(map(str, recording.version)))
    shown.add_row("demonstrations", str(len(file.demos)))
    shown.add_row(
        "observations", ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in file.obs_shapes.items())
    )
    shown.add_row("actions", f"{file.action_dim}, {ACTION_KINDS[file.action_kind]}")
    return shown
