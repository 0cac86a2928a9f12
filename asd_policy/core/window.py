"""How far a round speculates: a window for each frontier, and the choice of the cheapest.

The window may depend on the frontier and on measurements made beforehand, never on tests that were thrown away: so any
table of windows is exact (docs/algorithm.md, "The rule").
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
"""One window for all rounds, a table of them, "auto" for a table that is still to be measured, or None for all K."""

SWITCHING_GAIN = 0.01
"""Expected time that another window must save before it replaces the following frontier's."""


def as_windows(window: int | WindowTable | None, num_steps: int) -> WindowTable:
    """A window for each frontier. Raises ConfigError unless all are positive and their number fits."""
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
    """No window longer than the steps that are left, nor cut below `least`; None leaves them as they are."""
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
    """The table that minimises the expected time of a sample: for each frontier, the window with the best outlook.

    Backward induction: from the last frontier to the first, a window's outlook is the time of its round plus the
    expected remaining time at the frontier it leads to, when each draft is kept independently with its step's
    probability.

    Args:
        acceptance: (K,) the probability that a draft is kept at each step.
        seconds: for each window to choose from, the time of a round.

    Raises:
        ConfigError: if there is no window to choose from.
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


def _expected(remaining: Sequence[float], acceptance: Sequence[float], frontier: int, window: int) -> float:
    """The expected value of `remaining` after a round: the first rejected step's draw counts, so it ends after that."""
    last = min(frontier + window, len(acceptance)) - 1
    reached, total = 1.0, 0.0  # the probability that every draft before step k was kept
    for k in range(frontier, last):
        total += reached * (1 - acceptance[k]) * remaining[k + 1]
        reached *= acceptance[k]
    return total + reached * remaining[last + 1]
