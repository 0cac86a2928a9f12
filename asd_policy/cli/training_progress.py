"""Trains and shows the progress on the console."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from asd_policy.cli.progress import progress
from asd_policy.training.log import LossLog
from asd_policy.training.loop import Trainer, train
from asd_policy.training.trackers import tracking


def train_with_progress(trainer: Trainer, out: Path, console: Console, track: Sequence[str] = ()) -> bool:
    """`train` with progress on the console. Updates `log.jsonl` and `loss.png`, and the trackers `track`.

    Of several processes only the first one shows and writes.

    Returns:
        Whether all steps are done.

    Raises:
        CheckpointError: if `log.jsonl` is damaged, or as `train`.
        ConfigError: if another process trains in this directory.
        NumericalError, WorkerError: as `train`.
    """
    if not trainer.processes.is_first:
        return train(trainer, out)
    settings = trainer.settings
    last_step, last_time, validation = trainer.step, time.monotonic(), ""
    with (
        LossLog(out / "log.jsonl", trainer.step) as losses,
        tracking(track, out, asdict(settings)) as show,
        progress(console) as shown,
    ):
        row = shown.add("training", settings.steps, trainer.step)

        def log(step: int, loss: float, held_out: float | None) -> None:
            nonlocal last_step, last_time, validation
            now = time.monotonic()
            rate = (step - last_step) / (now - last_time)
            last_step, last_time = step, now
            measured = {} if held_out is None else {"held_out_loss": held_out}
            losses.append(step=step, loss=loss, steps_per_second=round(rate, 3), **measured)
            show(step, {"loss": loss, **measured})
            validation = validation if held_out is None else f" (held out {held_out:.5f})"
            shown.update(row, step, f"loss {loss:.5f}{validation}, {rate:.1f} steps/s")
            if step % settings.snapshot_every == 0 or step == settings.steps:
                losses.plot(out / "loss.png")

        return train(trainer, out, log)
