"""The losses of a training run: `log.jsonl` and its plot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from asd_policy.errors import CheckpointError, DataError
from asd_policy.jsonl import Entry, JsonLines


class LossLog:
    """`log.jsonl`: one line for each logged step. Use it in a `with` block, which locks the file against other runs.

    Args:
        path: the file. An unfinished last line, left by a kill, is removed.
        resumed_step: lines of later steps are removed.

    Attributes:
        entries: the lines so far.

    Raises:
        CheckpointError: if a line is damaged, or the file cannot be written.
        ConfigError: if another process is writing the file.
    """

    def __init__(self, path: Path, resumed_step: int):
        with _as_checkpoint_errors():
            self._lines = JsonLines(path)
            try:
                steps = [_step_of(path, *numbered) for numbered in enumerate(self._lines.entries, start=1)]
                kept = [entry for step, entry in zip(steps, self._lines.entries, strict=True) if step <= resumed_step]
                if len(kept) < len(self._lines.entries):
                    self._lines.replace(kept)  # this closes the file
                    self._lines = JsonLines(path)
            except BaseException:
                self._lines.close()
                raise

    @property
    def entries(self) -> list[Entry]:
        return self._lines.entries

    def append(self, **entry: float) -> None:
        """Append a line and flush it to disk. Raises CheckpointError if that fails, for example on a full disk."""
        with _as_checkpoint_errors():
            self._lines.append(entry)

    def plot(self, path: Path) -> None:
        """Plot the losses over the steps."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
        axes.plot([e["step"] for e in self.entries], [e["loss"] for e in self.entries], label="training")
        held_out = [e for e in self.entries if "held_out_loss" in e]
        if held_out:
            axes.plot([e["step"] for e in held_out], [e["held_out_loss"] for e in held_out], "o-", label="held out")
            axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=150)

    def close(self) -> None:
        """Close the file and unlock it."""
        self._lines.close()

    def __enter__(self) -> LossLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _step_of(path: Path, number: int, entry: Entry) -> int:
    step = entry.get("step")
    if not isinstance(step, int):
        raise DataError(f"{path}, line {number} has the step {step!r:.80}; expected an integer.")
    return step


@contextmanager
def _as_checkpoint_errors() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise CheckpointError(
            f"{error} A damaged line can be removed: the file only serves the plot of the loss."
        ) from error
