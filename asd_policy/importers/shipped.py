"""Finds checkpoints by path, by the name of a shipped one, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from asd_policy.errors import CheckpointError, ConfigError, HubError, UnknownNameError
from asd_policy.hub import HubId, open_snapshot
from asd_policy.importers.checkpoint import CONFIG
from asd_policy.importers.downloads import download_checkpoint
from asd_policy.importers.runs import policy_folder

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE.parent / "checkpoints", PACKAGE / "checkpoints")
"""The folders of shipped checkpoints: in a clone, and in an installed wheel."""

CLONE_ONLY = ("tool_hang", "transport")
"""Checkpoints of the repository that are too large for the wheel."""

MARKERS = (CONFIG, "model_index.json")
"""The files that identify a shipped folder: of a policy, and of a diffusers pipeline."""


def find_checkpoint(path_or_name: str | Path, revision: str | None = None) -> Path:
    """The file or folder of a checkpoint.

    Args:
        path_or_name: one of these, the first that exists:
            a path; of a lerobot training run the last step's policy is taken, with a warning that names the step;
            the name of a shipped checkpoint, such as "square";
            a repository of the Hugging Face hub, "user/name" or "user/name@revision", which is downloaded into
            huggingface_hub's cache, or read from there without a network.
        revision: the branch, tag or commit of a repository. By default its main branch.

    Raises:
        UnknownNameError: if there is none; the message says what was tried, and lists the shipped names and the
            checkpoints beside the path.
        ConfigError: if a revision is given for a path or a shipped checkpoint.
        CheckpointError: if the path cannot be accessed, the name is of a checkpoint that is only in the repository of
            this package, or the hub's repository holds no checkpoint.
    """
    path, shipped = Path(path_or_name), shipped_checkpoints()
    here = _exists(path)
    if here or (path.name == str(path) and path.name in shipped):
        if revision is not None:
            raise ConfigError(f"{path} is on this machine, and has no revision {revision!r}; leave revision out.")
        return policy_folder(path) if here else shipped[path.name]
    if str(path) in CLONE_ONLY:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is not part of the installed package, because of its size. It is in the "
            f"folder checkpoints/{path} of asd-policy's repository: clone the repository, and pass that folder."
        )
    tried = "There is no such file or folder"
    hub_id = HubId.parse(path_or_name, revision)
    if hub_id is not None:
        if _exists(Path(hub_id.repo)):
            raise ConfigError(
                f"{hub_id} is a revision of a repository of the hub, but {hub_id.repo} is also a folder here, which "
                "has no revisions. Pass the folder without one, or run in another directory."
            )
        try:
            return download_checkpoint(open_snapshot(hub_id))
        except HubError as error:
            tried += f", and no such repository could be had from the Hugging Face hub: {error}"
    else:
        tried += ", and it is no repository of the Hugging Face hub (user/name or user/name@revision)."
    beside = [str(config.parent) for config in path.parent.glob(f"*/{CONFIG}")]
    raise UnknownNameError("checkpoint", str(path), {*shipped, *beside}, tried)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a folder without permission, or a name that is too long
        raise CheckpointError(f"Cannot read the checkpoint {str(path)[:1000]}: {error.strerror}.") from error


def shipped_checkpoints() -> dict[str, Path]:
    """Names and folders of the installed shipped checkpoints."""
    found = [
        folder
        for parent in reversed(FOLDERS)
        for folder in sorted(parent.glob("*"))
        if any((folder / marker).is_file() for marker in MARKERS)
    ]
    return {folder.name: folder for folder in found}
