"""The native checkpoint: a folder with `config.json` and `model.safetensors`. Nothing in it is ever executed."""

from __future__ import annotations

from pathlib import Path

from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint
from asd_policy.importers.files import read_safetensors
from asd_policy.policies.config import PolicyConfig

FORMAT = "native"


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder of this package.

    Raises:
        ConfigError: on a config that makes no sense.
        CheckpointError: on a damaged file.
    """
    return Checkpoint(path, FORMAT, PolicyConfig.load(path / CONFIG), read_safetensors(path / WEIGHTS))
