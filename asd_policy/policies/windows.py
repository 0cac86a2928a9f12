"""Calibrated windows, saved beside a checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asd_policy.core import Calibration
from asd_policy.core.window import WindowTable, as_windows
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.files import write_atomically
from asd_policy.records import read_record


@dataclass(frozen=True)
class Calibrated:
    """The settings of a measurement of windows. The windows are used for exactly these settings.

    Attributes:
        weights: a hash of the weights, from `hash_of`.
        batch_size: chunks sampled at a time.
        device: the device.
        dtype: of the weights used in every network call.
        draft: the draft's name, from `plug_in_name`.
        capture: the capture's name.
    """

    weights: str
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    draft: str
    capture: str

    @property
    def key(self) -> str:
        """The entry's name in the file."""
        where = f"{device_name(self.device)}, batch {self.batch_size}"
        return f"{self.draft}, {self.capture}, {self.dtype}, {where}, weights {self.weights}"


@dataclass(frozen=True)
class WindowsFile:
    """Calibrations in a JSON file.

    Attributes:
        path: the file; None keeps calibrations in memory.
    """

    path: Path | None
    _here: dict[str, Any] = field(default_factory=dict)

    def find(self, calibrated: Calibrated, num_steps: int) -> WindowTable | None:
        """The windows (K,) measured with these settings, or None.

        Raises:
            CheckpointError: if the file cannot be read.
        """
        entries = self.read()
        if calibrated.key not in entries:
            return None
        try:
            return as_windows(read_record(Calibration, entries[calibrated.key], "An entry").windows, num_steps)
        except ConfigError as error:
            raise self._unreadable(error) from error

    def keep(self, calibrated: Calibrated, calibration: Calibration) -> None:
        """Add a calibration, or replace an earlier one with the same settings. The file is replaced atomically.

        Processes that calibrate at the same time take turns, so no entry is lost.

        Raises:
            CheckpointError: if the file cannot be read or written; the calibration is kept in memory all the same.
        """
        self._here[calibrated.key] = asdict(calibration)
        if self.path is None:
            return
        try:
            with locked(self.path.parent):
                text = json.dumps(self.read(), indent=1) + "\n"
                write_atomically(self.path, lambda path: path.write_text(text))
        except OSError as error:
            raise CheckpointError(
                f"Cannot write the calibrated windows {self.path}: {error}. They are used as long as this policy "
                "lives; to keep them, allow writing there."
            ) from error

    def read(self) -> dict[str, Any]:
        """All entries by key. Raises CheckpointError if the file cannot be read."""
        if self.path is None or not self.path.exists():
            return dict(self._here)
        try:
            entries = json.loads(self.path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise self._unreadable(error) from error
        if not isinstance(entries, dict):
            raise self._unreadable(TypeError(f"it holds a {type(entries).__name__}"))
        return entries | self._here

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"Cannot read the calibrated windows {self.path}: {error}. Delete the file.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes, waiting for the lock. Without effect if the system has no folder locks.

    Raises:
        OSError: if the folder cannot be opened.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def plug_in_name(value: object) -> str:
    """The name of a draft or capture; for an object its `repr`, which includes its settings."""
    return value if isinstance(value, str) else repr(value)


def hash_of(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of the names and values of the modules' tensors, shortened to 16 digits."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
