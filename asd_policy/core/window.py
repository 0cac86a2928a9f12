"""Windows: how many steps a round speculates from each frontier, and the choice of the fastest table.

A window may depend on the frontier and on earlier measurements, but never on tests after a rejection. So any table of
windows is exact (docs/algorithm.md, "The rule").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal

from asd_policy.core.checks import as_count
from asd_policy.errors import ConfigError

WindowTable = tuple[int, ...]
"""(K,) the window of a round that begins at each frontier."""

Window = int | WindowTable | Literal["auto"] | None
"""One window for all rounds, a table of them, "auto" for a table to be calibrated, or None for all K."""

SWITCHING_GAIN = 0.01
"""Share of the expected time that another window must save to differ from the following frontier's window."""


def as_windows(window: int | WindowTable | None, num_steps: int) -> WindowTable:
    """A window for each frontier (K,). Raises ConfigError unless there are K positive integers, or one for all."""
    if window is None:
        return (num_steps,) * num_steps
    try:
        entries = tuple(window) if isinstance(window, Iterable) else (window,) * num_steps
        table = tuple(min(as_count(entry, "window"), num_steps) for entry in entries)
    except ConfigError:
        table = ()
    if len(table) != num_steps:
        raise ConfigError(
            f"window is {window!r}; expected a positive integer, None to speculate all steps at once, 'auto', or one "
            f"positive integer for each of the {num_steps} steps."
        )
    return table


def shortened(windows: WindowTable, least: int | None) -> WindowTable:
    """Shorten windows to the steps that are left, but not below `least`; a `least` of None shortens none."""
    if least is None:
        return windows
    num_steps = len(windows)
    return tuple(min(window, max(num_steps - frontier, least)) for frontier, window in enumerate(windows))


def stages(windows: WindowTable) -> list[tuple[int, int]]:
    """Runs of equal windows, in order: (the frontier at which the run ends, its window)."""
    runs, until = [], 0
    for window, frontiers in groupby(windows):
        until += len(list(frontiers))
        runs.append((until, window))
    return runs


def cheapest_windows(acceptance: Sequence[float], seconds: Mapping[int, float]) -> WindowTable:
    """The table with the least expected time of a sample.

    Computed by backward induction: from the last frontier to the first, a window's expected time is that of its round
    plus the expected time from the next frontier. Drafts are assumed to be kept independently, with `acceptance[k]`.

    Args:
        acceptance: (K,) the probability that the draft is kept at each step.
        seconds: window -> seconds of a round.

    Raises:
        ConfigError: if `seconds` is empty.
    """
    if not seconds:
        raise ConfigError("There is no window to choose from; expected the time of a round for at least one.")
    num_steps = len(acceptance)
    remaining = [0.0] * (num_steps + 1)  # expected seconds from each frontier to the end
    windows = [0] * num_steps
    for frontier in reversed(range(num_steps)):
        outlook = {w: seconds[w] + _expected(remaining, acceptance, frontier, w) for w in seconds}
        best = min(outlook, key=lambda w: outlook[w])
        following = windows[frontier + 1] if frontier + 1 < num_steps else best
        if outlook[following] <= (1 + SWITCHING_GAIN) * outlook[best]:
            best = following
        windows[frontier], remaining[frontier] = best, outlook[best]
    return tuple(windows)


def expected_seconds(windows: WindowTable, acceptance: Sequence[float], seconds: Mapping[int, float]) -> float:
    """The expected time of a sample with a table of windows (K,); the other arguments as in `cheapest_windows`."""
    remaining = [0.0] * (len(windows) + 1)  # expected seconds from each frontier to the end
    for frontier in reversed(range(len(windows))):
        window = windows[frontier]
        remaining[frontier] = seconds[window] + _expected(remaining, acceptance, frontier, window)
    return remaining[0]


def _expected(remaining: Sequence[float], acceptance: Sequence[float], frontier: int, window: int) -> float:
    """The expected value of `remaining` after a round, which ends after its first rejected step (exact too)."""
    last = min(frontier + window, len(acceptance)) - 1
    reached, total = 1.0, 0.0  # the probability that every draft before step k was kept
    for k in range(frontier, last):
        total += reached * (1 - acceptance[k]) * remaining[k + 1]
        reached *= acceptance[k]
    return total + reached * remaining[last + 1]
