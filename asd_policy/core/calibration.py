"""Calibration: measure which windows are cheapest for a sampler on its device."""

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
CALIBRATION_SAMPLES = 64  # where there are no conditions to draw one for each
TIMED_DRAWS = 8


@dataclass(frozen=True)
class Calibration:
    """The cheapest windows, and the measurements they were chosen from."""

    windows: WindowTable  # (K,) for each frontier
    seconds: Mapping[int, float]  # window -> time of a round
    acceptance: Sequence[float]  # (K,) the share of samples that kept their draft at each step, at window K


def calibrate(sampler: AsdSampler, cond: Tensor | None, batch_size: int = 1, seed: int = 0) -> Calibration:
    """Measure the cheapest windows for a sampler's denoiser, draft, capture and device; takes seconds to minutes.

    The sampler stays as it is: `sampler.with_windows(calibration.windows)` runs with the result. Timings differ from
    run to run, and another table gives other samples (of the same law) from the same seed. Keep the table to draw the
    same samples again.

    Args:
        cond: (N, ...) conditions like those to come, or None: drafts are tested on one sample of each.
        batch_size: how many samples will be drawn at a time; at most N where there are conditions.
        seed: of the noise.

    Raises:
        ConfigError: on a batch size or seed that is no such integer, and as a draw.
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
    # The table's model takes drafts for independent and equally good at every window: so it has to prove itself.
    per_draw = {fixed[choice]: per_draw for choice, (per_draw, _) in timed.items()}
    per_draw[table] = _time(sampler.with_windows(table), cond, batch_size, seed)[0]
    return Calibration(min(per_draw, key=lambda windows: per_draw[windows]), seconds, acceptance)


def _time(sampler: AsdSampler, cond: Tensor | None, batch_size: int, seed: int) -> tuple[float, float]:
    """Mean seconds of a draw, and of a round, over several conditions."""
    rounds, begun = 0, 0.0
    for turn in range(-1, TIMED_DRAWS):
        if turn == 0:  # the draw before may have compiled
            begun, rounds = time.perf_counter(), 0
        some = None if cond is None else cond.roll(-turn * batch_size, dims=0)[:batch_size]
        rounds += len(sampler.draw(batch_size, some, Generator().manual_seed(seed + turn + 1)).stats.advance)
    taken = time.perf_counter() - begun
    return taken / TIMED_DRAWS, taken / rounds
