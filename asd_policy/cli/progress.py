"""The progress of a command: bars on a terminal, elsewhere a line now and then."""

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
"""Lines that a row prints over its course where there is no terminal."""


class Progress(Protocol):
    """Rows of work, each with a number of units."""

    def add(self, label: str, total: int, done: int = 0, detail: bool = False) -> int:
        """A new row; its number.

        Args:
            done: units that were done before.
            detail: whether the row is part of another one; it gets a bar, but no lines.
        """
        ...

    def update(self, row: int, done: int, note: str = "", label: str | None = None) -> None:
        """Set how many units of the row are done, the text beside them, and the row's label, if it changes."""
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


def counter(shown: Progress, label: str, total: int) -> Callable[[], None]:
    """A new row; the function that it returns says that one more unit is done."""
    row, units = shown.add(label, total), count(1)
    return lambda: shown.update(row, next(units))


class _Rows:
    """Bars of rich."""

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
    before: int  # units done when it was added
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
