"""Policies written as other libraries' files, where their networks and schedulers can be told so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.export.lerobot import to_lerobot
from asd_policy.importers.export.robomimic import to_robomimic


def to_native(checkpoint: Checkpoint, folder: Path) -> None:
    """Write this package's own folder."""
    checkpoint.save(folder)


EXPORTS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "native": to_native,
    "robomimic": to_robomimic,
    "lerobot": to_lerobot,
}
"""Format -> what writes it."""
