"""Peak memory of a block of code."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import torch

PROCESS = Path("/proc/self")


class PeakMemory:
    """Measures the peak of memory in its block, less the memory in use at the block's start.

    On a CUDA device it measures torch's allocations, on a CPU the process's resident memory.

    Attributes:
        peak: bytes, set after the block; NaN if the system does not report it, as outside Linux.
    """

    peak: float

    def __init__(self, device: torch.device):
        self._device = device

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif PROCESS.exists():
            try:
                (PROCESS / "clear_refs").write_text("5")  # resets the high-water mark
            except OSError:  # containers may forbid it; an earlier mark is no measurement
                self._before = float("nan")
                return self
        self._before = self._read("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.peak = self._read("VmHWM") - self._before

    def _read(self, field: str) -> float:
        if self._device.type == "cuda":
            read = torch.cuda.memory_allocated if field == "VmRSS" else torch.cuda.max_memory_allocated
            return float(read(self._device))
        if not PROCESS.exists():
            return float("nan")
        [line] = [line for line in (PROCESS / "status").read_text().splitlines() if line.startswith(field)]
        return 1024.0 * int(line.split()[1])
