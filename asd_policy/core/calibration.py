"""Calibration: measure which windows make a sampler fastest on its device."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Generator, Tensor

from asd_policy.core.checks import as_count, as_seed
from asd_policy.core.window import WindowTable, cheapest_windows

if TYPE_CHECKING:
    from asd_policy.core.sampler import AsdSampler

WINDOW_CHOICES = (4, 8, 16, 24, 32, 48, 64, 96)
CALIBRATION_SAMPLES = 64  # samples to measure acceptance with if there are no conditions
TIMED_DRAWS = 8


@dataclass(frozen=True)
class Calibration:
    """The fastest windows, and the measurements behind them."""

    windows: WindowTable  # (K,) one window for each frontier
    seconds: Mapping[int, float]  # window -> seconds of a round
    acceptance: Sequence[float]  # (K,) share of samples that kept their draft at each step, at window K


def calibrate(sampler: AsdSampler, cond: Tensor | None, batch_size: int = 1, seed: int = 0) -> Calibration:
    """Measure the fastest windows for a sampler's denoiser, draft, capture and device; takes seconds to minutes.

    The sampler is not changed: `sampler.with_windows(calibration.windows)` returns one that uses the result. Timings
    differ from run to run, and another table gives other samples (of the same law) from the same seed. Keep the table
    to reproduce samples.

    Args:
        cond: (N, ...) typical conditions, or None. Acceptance is measured on one sample for each condition.
        batch_size: samples per draw, at most N if there are conditions.
        seed: seeds the noise.

    Raises:
        ConfigError: on a batch size below 1 or a negative seed, and as `AsdSampler.draw`.
    """
    batch_size, num_steps, seed = as_count(batch_size, "batch_size"), sampler.num_steps, as_seed(seed)
    every_step = sampler.with_windows(None).with_capture("eager")
    count = CALIBRATION_SAMPLES if cond is None else len(cond)
    acceptance = every_step.draw(count, cond, Generator().manual_seed(seed)).stats.acceptance.tolist()
    fixed = {choice: (choice,) * num_steps for choice in WINDOW_CHOICES if choice < num_steps}
    fixed[num_steps] = (num_steps,) * num_steps
    timed = {choice: _time(sampler.with_windows(table), cond, batch_size, seed) for choice, table in fixed.items()}
    seconds = {choice: per_round for choice, (_, per_round) in timed.items()}
    table = cheapest_windows(acceptance, seconds)
    # The model behind the table assumes drafts that are kept independently, equally often at every window. So the table
    # is timed too, and returned only if it is faster than every fixed window.
    per_draw = {fixed[choice]: per_draw for choice, (per_draw, _) in timed.items()}
    per_draw[table] = _time(sampler.with_windows(table), cond, batch_size, seed)[0]
    return Calibration(min(per_draw, key=lambda windows: per_draw[windows]), seconds, acceptance)


def _time(sampler: AsdSampler, cond: Tensor | None, batch_size: int, seed: int) -> tuple[float, float]:
    """Mean seconds of a draw and of a round, over TIMED_DRAWS draws with changing conditions."""
    rounds, begun = 0, 0.0
    for turn in range(-1, TIMED_DRAWS):
        if turn == 0:  # the first draw may compile, so it is not timed
            begun, rounds = time.perf_counter(), 0
        some = None if cond is None else cond.roll(-turn * batch_size, dims=0)[:batch_size]
        rounds += len(sampler.draw(batch_size, some, Generator().manual_seed(seed + turn + 1)).stats.advance)
    taken = time.perf_counter() - begun
    return taken / TIMED_DRAWS, taken / rounds
