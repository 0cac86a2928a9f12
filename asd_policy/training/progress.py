"""Training under a progress bar."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from asd_policy.training.loop import Trainer, train
from asd_policy.training.run import LossLog


def train_with_progress(trainer: Trainer, out: Path, console: Console) -> bool:
    """`train`, shown on the console, keeping `log.jsonl` and `loss.png` up to date; returns whether the run is over."""
    settings = trainer.settings
    losses = LossLog(out / "log.jsonl", trainer.step)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    last_step, last_time, shown = trainer.step, time.monotonic(), ""
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=settings.steps, completed=trainer.step)

        def log(step: int, loss: float, held_out: float | None) -> None:
            nonlocal last_step, last_time, shown
            now = time.monotonic()
            rate = (step - last_step) / (now - last_time)
            last_step, last_time = step, now
            measured = {} if held_out is None else {"held_out_loss": held_out}
            losses.append(step=step, loss=loss, steps_per_second=round(rate, 3), **measured)
            shown = shown if held_out is None else f" (held out {held_out:.5f})"
            progress.update(task, completed=step, description=f"loss {loss:.5f}{shown}, {rate:.1f} steps/s")
            if step % settings.snapshot_every == 0 or step == settings.steps:
                losses.plot(out / "loss.png")

        return train(trainer, out, log)
