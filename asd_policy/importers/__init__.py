"""Policies from files: this package's own, real-stanford's, robomimic's and lerobot's."""

from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.registry import FORMATS, detect_format, load_policy, read_checkpoint

__all__ = ["FORMATS", "Checkpoint", "detect_format", "load_policy", "read_checkpoint"]
