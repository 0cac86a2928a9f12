"""The native checkpoint: a folder with `config.json` and `model.safetensors`. Nothing in it is ever executed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.checkpoint import CONFIG, FIELDS, WEIGHTS, Checkpoint, field_name
from asd_policy.importers.files import TensorPool, read_json, read_safetensors
from asd_policy.policies.config import PolicyConfig

FORMAT = "native"


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder of this package.

    Raises:
        ConfigError: on a config that makes no sense.
        CheckpointError: on a damaged file.
    """
    config = PolicyConfig.from_dict(read_json(path / CONFIG))
    tensors = TensorPool(read_safetensors(path / WEIGHTS), str(path)).take_all("")
    return Checkpoint(path, FORMAT, config, _with_centers(tensors, path))


def _with_centers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors with centers of zero where the file is older than these."""
    scale, center = (field_name("action", kind) for kind in ("scale", "center"))
    if center not in tensors and bool((tensors.get(scale, torch.ones(1)) == 0).any()):
        raise CheckpointError(f"{path}: the normalisation of 'action' has scale 0, so actions cannot be mapped back.")
    offsets = [name for name in tensors if name.startswith(FIELDS) and name.endswith(".offset")]
    centers = {f"{name.removesuffix('offset')}center": torch.zeros_like(tensors[name]) for name in offsets}
    return centers | tensors
