"""The dataset formats, and how a path or a repository of the Hugging Face hub becomes an open dataset."""

from __future__ import annotations

from pathlib import Path

from asd_policy.data.dataset import DEFAULTS, Choice, Dataset, DatasetFormats, check_dataset
from asd_policy.data.lerobot.reading import LEROBOT
from asd_policy.data.replay_buffer import REPLAY_BUFFER
from asd_policy.data.robomimic_hdf5 import HDF5
from asd_policy.data.stored import STORE
from asd_policy.errors import ConfigError, DataError, HubError
from asd_policy.hub import HubId, Snapshot, open_snapshot

FORMATS = DatasetFormats({item.name: item for item in (STORE, LEROBOT, REPLAY_BUFFER, HDF5)})
"""Dataset formats by name."""

HUB_FILES = ("meta/*", "data/*", "videos/*")
"""The files of a LeRobotDataset on the hub."""


def open_dataset(data: str | Path, choice: Choice = DEFAULTS) -> Dataset:
    """Open a dataset in any of `FORMATS`.

    Args:
        data: a file, a folder, or a repository of the hub as "user/name" or "user/name@revision".
        choice: what to read.

    Raises:
        DataError: if there is no dataset, or it is damaged.
        HubError: if the repository cannot be downloaded.
        ConfigError: if a package that the format needs is not installed, or the choice does not fit the format.
        UnknownNameError: if the dataset lacks an observation, an action or a filter.
    """
    path = located(data)
    found = [item for item in FORMATS.values() if item.recognises(path)]
    if len(found) > 1:
        raise ConfigError(f"{path} is recognised as {' and '.join(item.name for item in found)}; expected one format.")
    if not found:
        raise DataError(_unrecognised(path))
    dataset = found[0].open(path, choice)
    check_dataset(found[0].name, dataset)
    return dataset


def located(data: str | Path) -> Path:
    """The path of a dataset, after a download if it is a repository of the hub. Raises HubError if that fails."""
    path = Path(data)
    hub_id = None if path.exists() else HubId.parse(data)
    return path if hub_id is None else _snapshot(hub_id, path).download(HUB_FILES)


def pinned(data: str | Path) -> str:
    """A repository of the hub with its present commit, so that it names the same data later; a path unchanged.

    Raises:
        HubError: if the repository cannot be found.
    """
    hub_id = None if Path(data).exists() else HubId.parse(data)
    return str(data) if hub_id is None else str(HubId(hub_id.repo, _snapshot(hub_id, Path(data)).commit))


def _snapshot(hub_id: HubId, path: Path) -> Snapshot:
    """The repository of the hub, in place of the path, which does not exist. Raises HubError if it cannot be found."""
    try:
        return open_snapshot(hub_id, "dataset")
    except HubError as error:
        raise HubError(f"There is no file or folder {path}, nor such a repository: {error}") from error


def _unrecognised(path: Path) -> str:
    expected = "; ".join(f"{item.name}: {item.told}" for item in FORMATS.values())
    if path.is_file():
        return f"Cannot read {path}: it is in no known dataset format, or damaged. Expected one of: {expected}."
    state = "holds none of the known formats" if path.is_dir() else "does not exist"
    return f"No episode store or other dataset at {path}: it {state}. Expected one of: {expected}."
