"""Finds checkpoints by path, or by the name of a shipped one."""

from __future__ import annotations

from pathlib import Path

from asd_policy.errors import CheckpointError, UnknownNameError
from asd_policy.importers.checkpoint import CONFIG

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE.parent / "checkpoints", PACKAGE / "checkpoints")
"""The folders of shipped checkpoints: in a clone, and in an installed wheel."""

CLONE_ONLY = ("tool_hang", "transport")
"""Checkpoints of the repository that are too large for the wheel."""

MARKERS = (CONFIG, "model_index.json")
"""The files that identify a shipped folder: of a policy, and of a diffusers pipeline."""


def find_checkpoint(path_or_name: str | Path) -> Path:
    """The file or folder of a checkpoint.

    Args:
        path_or_name: a path, or the name of a shipped checkpoint such as "square". An existing path wins.

    Raises:
        UnknownNameError: if there is neither; the message lists the shipped names and the checkpoints beside the path.
        CheckpointError: if the path cannot be accessed, or the name is of a checkpoint that is only in the repository.
    """
    path = Path(path_or_name)
    try:
        if path.exists():
            return path
    except OSError as error:  # a folder without permission, or a name that is too long
        raise CheckpointError(f"Cannot read the checkpoint {str(path)[:1000]}: {error.strerror}.") from error
    shipped = shipped_checkpoints()
    if path.name == str(path) and path.name in shipped:
        return shipped[path.name]
    if str(path) in CLONE_ONLY:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is not part of the installed package, because of its size. It is in the "
            f"folder checkpoints/{path} of asd-policy's repository: clone the repository, and pass that folder."
        )
    beside = [str(config.parent) for config in path.parent.glob(f"*/{CONFIG}")]
    raise UnknownNameError("checkpoint", str(path), {*shipped, *beside})


def shipped_checkpoints() -> dict[str, Path]:
    """Names and folders of the installed shipped checkpoints."""
    found = [
        folder
        for parent in reversed(FOLDERS)
        for folder in sorted(parent.glob("*"))
        if any((folder / marker).is_file() for marker in MARKERS)
    ]
    return {folder.name: folder for folder in found}
