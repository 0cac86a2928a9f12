"""Downloads the files of a checkpoint from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Collection
from glob import escape
from pathlib import Path, PurePosixPath

from asd_policy.errors import CheckpointError
from asd_policy.hub import Snapshot
from asd_policy.importers.checkpoint import CONFIG
from asd_policy.importers.runs import AVERAGED, step_in_repository

SAFE, PICKLED = (".json", ".safetensors"), (".ckpt", ".pth")
MAX_BYTES = 16 * 2**30


def download_checkpoint(snapshot: Snapshot, force_download: bool = False) -> Path:
    """Download a repository's checkpoint: its folder (JSON and safetensors), or else its one `.ckpt` or `.pth` file.

    Files of other folders and of training (optimizers, videos) are not downloaded, and nothing is unpickled.

    Returns:
        The folder or file in the cache.

    Raises:
        HubError: if the download fails, or is larger than 16 GiB.
        CheckpointError: if the repository holds no checkpoint, or several files that could be it.
    """
    place, files = _chosen(snapshot)
    return snapshot.download(map(escape, files), max_bytes=MAX_BYTES, force_download=force_download) / place


def _chosen(snapshot: Snapshot) -> tuple[str, list[str]]:
    """The checkpoint's path in the repository, and the files to download."""
    names, where = list(snapshot.sizes), str(snapshot.hub_id)
    folder = "." if CONFIG in names else step_in_repository(names, where)
    if folder is not None:
        return folder, _files_of(folder, names)
    pickled = [name for name in names if name.endswith(PICKLED)]
    if len(pickled) == 1:
        return pickled[0], pickled
    held = f"the files {', '.join(pickled[:20])}" if pickled else f"{', '.join(names[:20]) or 'no files'}"
    raise CheckpointError(
        f"The repository {where} holds {held}; expected {CONFIG} with model.safetensors, or one file "
        f"{' or '.join(PICKLED)}. To use one of several: hf download {snapshot.hub_id.repo} FILE, and pass its path."
    )


def _files_of(folder: str, names: Collection[str]) -> list[str]:
    """The files of the policy in this folder: the weights, the configurations, the processors, the averaged weights."""
    place = PurePosixPath(folder)
    folders = {place, place / AVERAGED, *([place.parent / AVERAGED] if folder != "." else [])}
    return [
        name
        for name in names
        if name.endswith(SAFE)
        and PurePosixPath(name).parent in folders
        and not PurePosixPath(name).name.startswith("optimizer")
    ]
