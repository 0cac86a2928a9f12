"""Checkpoints in the formats of this package, real-stanford, robomimic and lerobot."""

from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.format import Format
from asd_policy.importers.registry import FORMATS, detect_format, load_policy, read_checkpoint
from asd_policy.importers.shipped import find_checkpoint

__all__ = ["FORMATS", "Checkpoint", "Format", "detect_format", "find_checkpoint", "load_policy", "read_checkpoint"]
