"""diffusers' progress bar for rounds that finish many steps at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline
from torch import Tensor

from asd_policy.core import OnRound


@contextmanager
def progress_bar(pipe: DiffusionPipeline, num_steps: int, on_round: OnRound | None = None) -> Iterator[OnRound]:
    """Show the pipeline's own bar of `num_steps` steps; yield a function that moves it to the slowest image's frontier.

    At the end the bar is full, even if the function was never called.

    Args:
        on_round: also called after each round.
    """
    certain = 0
    with pipe.progress_bar(total=num_steps) as bar:

        def report(frontier: Tensor, x: Tensor) -> None:
            nonlocal certain
            slowest = int(frontier.min())
            bar.update(slowest - certain)
            certain = slowest
            if on_round is not None:
                on_round(frontier, x)

        yield report
        bar.update(num_steps - certain)
