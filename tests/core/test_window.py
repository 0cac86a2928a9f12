"""Windows by cost: the table is the optimum of its model, and cutting never changes what a round can do."""

import random
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asd_policy.core.window import cheapest_windows, shortened, stages
from asd_policy.errors import ConfigError

tables = st.lists(st.integers(1, 40), min_size=1, max_size=40).map(tuple)


@given(tables, st.none() | st.integers(1, 4))
def test_a_shortened_window_still_reaches_every_step_it_could(windows, least):
    for frontier, (before, after) in enumerate(zip(windows, shortened(windows, least), strict=True)):
        left = len(windows) - frontier
        assert after == (before if least is None else min(before, max(left, least)))


@given(tables)
def test_stages_cover_the_table(windows):
    runs, start = stages(windows), 0
    for until, window in runs:
        assert set(windows[start:until]) == {window}
        start = until
    assert start == len(windows)
    assert all(a != b for (_, a), (_, b) in pairwise(runs))


def expected_time(windows, acceptance, seconds):
    """By simulating the model, not by its recurrence."""
    rng, total, runs = random.Random(0), 0.0, 4000
    for _ in range(runs):
        frontier = 0
        while frontier < len(windows):
            window = windows[frontier]
            total += seconds[window]
            for _ in range(min(window, len(windows) - frontier)):
                frontier += 1
                if rng.random() >= acceptance[frontier - 1]:
                    break
    return total / runs


def test_the_table_beats_every_fixed_window():
    acceptance = [0.3] * 5 + [0.95] * 20 + [0.5] * 5
    seconds = {1: 1.0, 4: 1.3, 16: 2.0}
    table = cheapest_windows(acceptance, seconds)
    best = expected_time(table, acceptance, seconds)
    for window in seconds:
        assert best <= expected_time((window,) * 30, acceptance, seconds) * 1.03
    assert set(table[8:16]) == {16}
    assert 16 not in table[26:]


def test_it_equals_the_optimum_by_exhaustion():
    acceptance, seconds = [0.2, 0.9, 0.6, 0.8, 0.1], {1: 1.0, 2: 1.35, 5: 2.0}

    @cache
    def optimum(frontier: int) -> float:
        if frontier == 5:
            return 0.0
        return min(cost + lands(frontier, w) for w, cost in seconds.items())

    def lands(frontier: int, window: int) -> float:
        if frontier == 5:
            return 0.0
        p, last = acceptance[frontier], window == 1 or frontier == 4
        return optimum(frontier + 1) if last else (1 - p) * optimum(frontier + 1) + p * lands(frontier + 1, window - 1)

    table = cheapest_windows(acceptance, seconds)
    for frontier, window in enumerate(table):
        assert seconds[window] + lands(frontier, window) <= optimum(frontier) * 1.02


def test_free_rows_make_the_whole_chain_the_window():
    assert cheapest_windows([0.9] * 20, {4: 1.0, 8: 1.0, 20: 1.0})[0] == 20


def test_nothing_to_choose_from():
    with pytest.raises(ConfigError, match="no window"):
        cheapest_windows([0.5], {})
