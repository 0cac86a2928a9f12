"""A calibration as a table: calibrated windows beside fixed ones."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from asd_policy.core import Calibration
from asd_policy.core.window import expected_seconds


def stretches(windows: Sequence[int]) -> str:
    """The windows (K,) as runs of equal windows, such as "0-79: 24, 80-99: 16"."""
    starts = [step for step in range(len(windows)) if step == 0 or windows[step] != windows[step - 1]]
    ends = [*(start - 1 for start in starts[1:]), len(windows) - 1]
    return ", ".join(f"{first}-{last}: {windows[first]}" for first, last in zip(starts, ends, strict=True))


def table(calibration: Calibration) -> Table:
    """The expected time of a chunk with the calibrated windows and with each fixed one, and the time of a round."""
    acceptance, seconds = calibration.acceptance, calibration.seconds
    num_steps = len(calibration.windows)
    best = expected_seconds(calibration.windows, acceptance, seconds)
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("window", no_wrap=True)
    for name in ("ms a chunk, expected", "against calibrated", "ms a round"):
        result.add_column(name, justify="right")
    result.add_row("calibrated", f"{1e3 * best:.2f}", "1.00", "-")
    for window in sorted(seconds):
        chunk = expected_seconds((window,) * num_steps, acceptance, seconds)
        name = f"{window} (all)" if window == num_steps else str(window)
        result.add_row(name, f"{1e3 * chunk:.2f}", f"{chunk / best:.2f}", f"{1e3 * seconds[window]:.2f}")
    return result
