"""Calibrated windows, kept beside a checkpoint."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from asd_policy.core import Calibration
from asd_policy.errors import CheckpointError


class CalibratedWindows:
    """The entry of one device, thread count, type of weights, draft and capture in a JSON file.

    Args:
        file: where to keep it; None keeps nothing.
    """

    def __init__(self, file: Path | None, device: torch.device, dtype: torch.dtype, sampler_options: Mapping[str, Any]):
        self.file = file
        gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
        draft, capture = sampler_options.get("draft", "path"), sampler_options.get("capture", "eager")
        self._key = f"{draft}, {capture}, {dtype}, {name}"

    def filled_in(self, sampler_options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with `window="auto"` replaced by the table that is kept, if there is one."""
        entry = self._entries().get(self._key) if sampler_options.get("window") == "auto" else None
        return {**sampler_options, "window": tuple(entry["windows"])} if entry else dict(sampler_options)

    def keep(self, calibration: Calibration) -> None:
        """Write the calibration, in place of an earlier one."""
        if self.file is not None:
            entries = self._entries() | {self._key: asdict(calibration)}
            self.file.write_text(json.dumps(entries, indent=1) + "\n")

    def _entries(self) -> dict[str, Any]:
        if self.file is None or not self.file.exists():
            return {}
        try:
            entries: dict[str, Any] = json.loads(self.file.read_text())
            return {key: {**entry, "windows": list(map(int, entry["windows"]))} for key, entry in entries.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"Cannot read the calibrated windows {self.file}: {error}. Delete the file."
            ) from error
