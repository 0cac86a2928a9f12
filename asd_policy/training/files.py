"""Writes the files of a training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from asd_policy.errors import CheckpointError
from asd_policy.files import write_atomically


def write_checkpoint(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file atomically by the output of `write`: even after a power cut it holds the old or new content.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk. The old file stays.
    """
    try:
        write_atomically(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
        raise CheckpointError(f"Cannot write {path}: {error}") from error
