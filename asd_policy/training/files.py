"""Writing the files of a training run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from asd_policy.errors import CheckpointError
from asd_policy.files import write_atomically


def write_checkpoint(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file by what `write` writes: a reader sees the old file or the new one, even after a power cut.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; the old file stays.
    """
    try:
        write_atomically(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
        raise CheckpointError(f"Cannot write {path}: {error}") from error
