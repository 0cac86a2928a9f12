"""Compares the samplers of each task, from their recorded episodes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.stats import Comparison, compare
from asd_policy.evaluation.summary import Row, summarize


@dataclass(frozen=True)
class TaskReport:
    """One task's part of the report."""

    task: str
    cells: dict[str, list[Record]]  # sampler -> its episodes
    rows: dict[str, Row]  # sampler -> their summary
    baseline_name: str  # the sampler that the others are compared with
    comparisons: dict[str, Comparison]  # sampler -> its comparison with the baseline, if they share episodes
    provenance: dict[str, Any]
    warnings: list[str]

    @property
    def baseline(self) -> Row | None:
        return self.rows.get(self.baseline_name)

    @property
    def failures(self) -> dict[tuple[int, int], dict[str, Record]]:
        """(env seed, repeat) -> sampler -> its episode, if at least one of them failed."""
        episodes: dict[tuple[int, int], dict[str, Record]] = {}
        for sampler, records in self.cells.items():
            for record in records:
                episodes.setdefault((record.env_seed, record.repeat), {})[sampler] = record
        return {key: row for key, row in sorted(episodes.items()) if not all(r.success for r in row.values())}

    @property
    def errors(self) -> list[Record]:
        return [record for records in self.cells.values() for record in records if record.error is not None]


@dataclass(frozen=True)
class Video:
    """A film of a repeated episode."""

    record: Record
    path: str  # relative to the page
    same: bool  # whether the actions equal the recorded ones
    success: bool  # whether the repeated episode succeeded


def analyze(records: Sequence[Record], margin: float = 0.05, baseline: str = "ddpm") -> list[TaskReport]:
    """One report for each task, in order of appearance.

    Args:
        margin: see `stats.compare`.
        baseline: the label of the sampler to compare with.

    Raises:
        ConfigError: if there is no record, one appears twice, or a task has records of several checkpoints.
        DataError: on costs that are not numbers, or whose lengths differ.
    """
    if not records:
        raise ConfigError("The files hold no finished episode.")
    _check(records)
    tasks: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        tasks.setdefault(record.task, {}).setdefault(record.sampler, []).append(record)
    return [_task_report(task, cells, margin, baseline) for task, cells in tasks.items()]


def _task_report(task: str, cells: dict[str, list[Record]], margin: float, baseline: str) -> TaskReport:
    outcomes = {
        sampler: {(record.env_seed, record.repeat): record.success for record in records}
        for sampler, records in cells.items()
    }
    theirs = outcomes.get(baseline, {})
    comparisons = {
        sampler: compare(mine, theirs, np.random.default_rng(0), margin)
        for sampler, mine in outcomes.items()
        if sampler != baseline and mine.keys() & theirs.keys()
    }
    rows = {row.sampler: row for row in summarize(cells)}
    records = [record for cell in cells.values() for record in cell]
    provenance = {
        "checkpoint": records[0].checkpoint_sha256,
        "settings": _distinct([record.settings for record in records]),
        "software": _distinct([record.software for record in records]),
    }
    return TaskReport(task, cells, rows, baseline, comparisons, provenance, _warnings(cells, provenance, baseline))


def _distinct(values: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The distinct values and their counts, most frequent first."""
    counts = Counter(json.dumps(value, sort_keys=True) for value in values)
    return [(json.loads(text), count) for text, count in counts.most_common()]


def _warnings(cells: dict[str, list[Record]], provenance: dict[str, Any], baseline: str) -> list[str]:
    """Warnings to read before comparing the numbers."""
    found = []
    episodes = {frozenset((record.env_seed, record.repeat) for record in records) for records in cells.values()}
    if len(episodes) > 1:
        counts = ", ".join(f"{sampler} {len(records)}" for sampler, records in cells.items())
        found.append(f"The samplers have not run the same episodes ({counts}). Comparisons use those that they share.")
    batches = [settings["batch"] for settings, _ in provenance["settings"] if settings.get("batch", 1) != 1]
    if batches:
        found.append(
            f"Latencies come from batched runs (one policy served {', '.join(map(str, batches))} environments): a "
            "chunk took as long as its whole batch, and actions equal those of single runs up to rounding only."
        )
    for name in ("settings", "software"):
        values = [value for value, _ in provenance[name]]
        if len(values) > 1:
            keys = sorted(
                {key for value in values for key in value | values[0] if value.get(key) != values[0].get(key)}
            )
            found.append(f"Episodes were run with different {name} ({', '.join(keys)}): latencies may not compare.")
    broken = sum(record.error is not None for records in cells.values() for record in records)
    if broken:
        found.append(f"Episodes that broke with an error, and count as failures: {broken}.")
    if baseline not in cells:
        found.append(f"Nothing was run with {baseline}, so there is neither a speed-up nor a comparison of success.")
    return found


def _check(records: Sequence[Record]) -> None:
    """Raise on records that cannot be summarised, because files may be untrusted."""
    twice = [key for key, count in Counter(record.key for record in records).items() if count > 1]
    if twice:
        raise ConfigError(f"{len(twice)} episodes appear more than once, the first {twice[0]}. Give each file once.")
    checkpoints: dict[str, str] = {}
    steps: dict[tuple[str, str], int] = {}
    for record in records:
        if checkpoints.setdefault(record.task, record.checkpoint_sha256) != record.checkpoint_sha256:
            raise ConfigError(f"The files hold {record.task} of several checkpoints. Report each apart.")
        costs = (record.latency, record.rounds, record.evaluations)
        lengths = {len(cost) for cost in costs}
        shares = all(_is_number(share) and 0 <= share <= 1 for share in record.acceptance)
        if len(lengths) > 1 or not all(_is_number(value) and value > 0 for cost in costs for value in cost):
            raise DataError(f"{record.key}: latency, rounds and evaluations need a positive number of each chunk.")
        if not shares or not _is_number(record.length):
            raise DataError(f"{record.key}: length must be a number, and acceptance numbers from 0 to 1.")
        if record.acceptance:
            cell = (record.task, record.sampler)
            if steps.setdefault(cell, len(record.acceptance)) != len(record.acceptance):
                raise DataError(f"{record.key}: acceptance has {len(record.acceptance)} steps, others {steps[cell]}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
