"""This package's own format: a folder with `config.json` and `model.safetensors`. Reading it never runs code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.checkpoint import CONFIG, FIELDS, WEIGHTS, Checkpoint, field_name
from asd_policy.importers.files import TensorPool, read_json, read_safetensors
from asd_policy.importers.format import Format
from asd_policy.policies.config import PolicyConfig

NAME = "native"


def read(path: Path) -> Checkpoint:
    """Read a native folder.

    Raises:
        ConfigError: if `config.json` has missing, unknown or impossible values.
        CheckpointError: if a file is missing or damaged.
    """
    config = PolicyConfig.from_dict(read_json(path / CONFIG))
    tensors = TensorPool(read_safetensors(path / WEIGHTS), str(path)).take_all("")
    return Checkpoint(path, NAME, config, _with_centers(tensors, path))


def _with_centers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, with centers of zero added for files written before centers existed."""
    scale, center = (field_name("action", kind) for kind in ("scale", "center"))
    if center not in tensors and bool((tensors.get(scale, torch.ones(1)) == 0).any()):
        raise CheckpointError(f"{path}: the normalisation of 'action' has scale 0, so actions cannot be mapped back.")
    offsets = [name for name in tensors if name.startswith(FIELDS) and name.endswith(".offset")]
    centers = {f"{name.removesuffix('offset')}center": torch.zeros_like(tensors[name]) for name in offsets}
    return centers | tensors


FORMAT = Format(
    name=NAME,
    place="folder",
    marks=frozenset({"obs_keys", "format_version"}),
    read=read,
    write=Checkpoint.save,
)
