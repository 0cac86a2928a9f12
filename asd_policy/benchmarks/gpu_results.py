"""The results of `asd-policy gpu-check`, written after each row, and its time budget."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asd_policy.benchmarks.gpu_table import GpuRow, table


class Budget:
    """The time for all sections. Each section has a share, and leaves its remaining time to the following ones."""

    def __init__(self, minutes: float):
        self._seconds, self._started = 60 * minutes, time.monotonic()

    def left(self, share: float) -> float:
        """Seconds until `share` of the time is used up; 0 or less if it is."""
        return share * self._seconds - self.spent

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


class GpuResults:
    """Rows by section, in a folder as gpu_check.json and as the table gpu_check.md."""

    def __init__(self, folder: Path, about: GpuRow):
        self.folder, self.about = folder, about
        self.rows: list[GpuRow] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def add(self, section: str, name: str, **values: Any) -> GpuRow:
        """Add a row, which may be filled later."""
        row = {"section": section, "row": name, **values}
        self.rows.append(row)
        return row

    def of(self, section: str) -> list[GpuRow]:
        """The rows of a section."""
        return [row for row in self.rows if row["section"] == section]

    @contextmanager
    def measuring(self, row: GpuRow) -> Iterator[None]:
        """A context that records an exception as the row's error, so that the run continues."""
        try:
            yield
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:600]
        finally:
            self.save()

    def save(self) -> None:
        """Write all rows. NaN, which JSON lacks, becomes null."""
        found = {**self.about, "rows": _without_nan(self.rows)}
        for name, text in (("gpu_check.json", json.dumps(found, indent=1) + "\n"), ("gpu_check.md", table(found))):
            part = self.folder / f"{name}.part"
            part.write_text(text)
            part.replace(self.folder / name)


def outcome(row: GpuRow, key: str, unit: str) -> str:
    """The log entry of a row: one of its values, or its error."""
    return str(row["error"]) if "error" in row else f"{row[key]:.3f} {unit}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
