"""The progress of a command: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINES = 20
"""Lines that a row prints over its course where there is no terminal."""


class Progress(Protocol):
    """Rows of work, each with a number of units."""

    def add(self, label: str, total: int, done: int = 0) -> int:
        """A new row, some of which may be done already; its number."""
        ...

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        """How many units of the row are done, what to say beside them, and the row's new label."""
        ...


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """Shows rows of work on the console while the block runs."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        yield _Rows(bars)


class _Rows:
    """Bars of rich."""

    def __init__(self, bars: Bars):
        self._bars = bars

    def add(self, label: str, total: int, done: int = 0) -> int:
        row = self._bars.add_task(label, total=total, note="")
        if done:
            self._bars.reset(row, completed=done)  # what was done before says nothing of the speed
        return row

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        self._bars.update(TaskID(row), completed=done, note=note, description=label)


class _Lines:
    """A line for each twentieth of a row."""

    def __init__(self, console: Console):
        self._console = console
        self._rows: list[tuple[str, int, int, float]] = []  # label, total, done at the start, time of the start
        self._told: list[int] = []

    def add(self, label: str, total: int, done: int = 0) -> int:
        self._rows.append((label, total, done, monotonic()))
        self._told.append(done)
        return len(self._rows) - 1

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        name, total, before, started = self._rows[row]
        if label is not None:
            self._rows[row] = label, total, before, started
        if total and done * LINES // total > self._told[row] * LINES // total:
            self._told[row] = done
            left = (monotonic() - started) / max(done - before, 1) * (total - done)
            told = ", ".join(
                filter(None, (f"{label or name}: {done}/{total}", note, f"about {left / 60:.0f} min left"))
            )
            self._console.print(told, highlight=False, markup=False, soft_wrap=True)
