"""A calibration as a table: calibrated windows beside fixed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from asd_policy.core import Calibration


def expected_seconds(windows: Sequence[int], acceptance: Sequence[float], seconds: Mapping[int, float]) -> float:
    """The expected time of a chunk, if each draft is kept independently with its step's probability.

    Args:
        windows: (K,) the window of a round that begins at each step.
        acceptance: (K,) the probability that each step's draft is kept.
        seconds: window -> seconds of a round.
    """
    num_steps = len(windows)
    remaining = [0.0] * (num_steps + 1)  # expected seconds from each step to the end
    for step in reversed(range(num_steps)):
        last = min(step + windows[step], num_steps) - 1
        remaining[step], reached = seconds[windows[step]], 1.0
        for rejected in range(step, last):  # the round ends after the first rejected draft, whose step is exact too
            remaining[step] += reached * (1 - acceptance[rejected]) * remaining[rejected + 1]
            reached *= acceptance[rejected]
        remaining[step] += reached * remaining[last + 1]
    return remaining[0]


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
