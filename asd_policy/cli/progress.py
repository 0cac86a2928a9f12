"""The progress of a command: bars on a terminal, otherwise occasional lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINES = 20
"""Lines that each row prints in all, without a terminal."""


class Progress(Protocol):
    """Rows of work, each with a number of units."""

    def add(self, label: str, total: int, done: int = 0, detail: bool = False) -> int:
        """Add a row. Returns its number.

        Args:
            done: units that are already done.
            detail: whether the row is part of another row. It then gets a bar, but no lines.
        """
        ...

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        """Set the number of finished units, the note beside them, and a new label if it is given."""
        ...


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A context that shows rows of work on the console."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        yield _Rows(bars)


def counter(shown: Progress, label: str, total: int) -> Callable[[], None]:
    """Add a row. The returned function counts one more finished unit."""
    row, units = shown.add(label, total), count(1)
    return lambda: shown.update(row, next(units))


class _Rows:
    """Bars, by rich."""

    def __init__(self, bars: Bars):
        self._bars = bars

    def add(self, label: str, total: int, done: int = 0, detail: bool = False) -> int:
        row = self._bars.add_task(label, total=total, note="")
        if done:
            self._bars.reset(row, completed=done)  # units done before say nothing about the speed
        return row

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        self._bars.update(TaskID(row), completed=done, note=note, description=label)


@dataclass
class _Row:
    label: str
    total: int
    before: int  # units done when the row was added
    told: int  # units done at its last line
    detail: bool
    started: float = field(default_factory=monotonic)


class _Lines:
    """A line for each twentieth of a row."""

    def __init__(self, console: Console):
        self._console = console
        self._rows: list[_Row] = []

    def add(self, label: str, total: int, done: int = 0, detail: bool = False) -> int:
        self._rows.append(_Row(label, total, done, done, detail))
        return len(self._rows) - 1

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        it = self._rows[row]
        it.label = it.label if label is None else label
        if it.detail or not it.total or done * LINES // it.total <= it.told * LINES // it.total:
            return
        it.told = done
        left = (monotonic() - it.started) / max(done - it.before, 1) * (it.total - done)
        told = (f"{it.label}: {done}/{it.total}", note, f"about {left / 60:.0f} min left")
        self._console.print(", ".join(filter(None, told)), highlight=False, markup=False, soft_wrap=True)
