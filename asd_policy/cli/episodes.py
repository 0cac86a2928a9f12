"""Prints a sweep's episodes as they finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from asd_policy.cli.progress import progress
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.sweep import Plan

SHOWN_ERRORS = 5


@dataclass
class Tally:
    """Counts episodes."""

    done: int = 0
    successes: int = 0
    errors: int = 0

    def add(self, record: Record) -> None:
        self.done += 1
        self.successes += record.success
        self.errors += record.error is not None

    def __str__(self) -> str:
        return f"{self.successes} succeeded" + (f", {self.errors} with errors" if self.errors else "")


@contextmanager
def show_episodes(plan: Plan, records: Sequence[Record], console: Console) -> Iterator[Callable[[Record], None]]:
    """Progress of each task and sampler, and of all together. Yields a function to call with each new record.

    Args:
        records: the episodes on file.
    """
    totals = Counter((key.task, key.sampler) for key in plan.keys)
    tallies, everything = {cell: Tally() for cell in totals}, Tally()
    planned = set(plan.keys)
    for record in records:
        if record.key in planned:
            tallies[record.task, record.sampler].add(record)
            everything.add(record)
    with progress(console) as shown:
        rows = {
            cell: shown.add(" ".join(cell), total, tallies[cell].done, detail=True) for cell, total in totals.items()
        }
        last = shown.add("all episodes", len(plan.keys), everything.done)

        def show(record: Record) -> None:
            cell = record.task, record.sampler
            for row, tally in ((rows[cell], tallies[cell]), (last, everything)):
                tally.add(record)
                shown.update(row, tally.done, str(tally))

        yield show


def print_errors(records: Sequence[Record], console: Console) -> None:
    """Print the first few errors."""
    for record in records[:SHOWN_ERRORS]:
        console.print(
            f"{record.sampler}, env seed {record.env_seed}, repeat {record.repeat}: {record.error}",
            style="red",
            markup=False,
        )
