"""Measurements of image samplers as rows, tables and a plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from asd_policy.benchmarks.images import BASELINE, MEASURED, Measurement

ImageRow = dict[str, Any]
"""Kind, sampler, number of measurements, and the means of the kind's values."""


def summarize(measurements: Sequence[Measurement]) -> list[ImageRow]:
    """One row for each kind and sampler: means, and the standard deviation of the Frechet distance over repeats."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.kind, measurement.sampler].append(measurement.values)
    rows = []
    for (kind, sampler), values in groups.items():
        row = {name: float(np.mean([one[name] for one in values])) for name in MEASURED[kind]}
        if kind == "quality":
            row["frechet_std"] = float(np.std([one["frechet"] for one in values], ddof=1)) if len(values) > 1 else 0.0
        rows.append({"kind": kind, "sampler": sampler, "count": len(values), **row})
    return rows


def tables(rows: Sequence[ImageRow]) -> Iterator[Table]:
    """A table of costs, and one of Frechet distances."""
    cost, memory = ({row["sampler"]: row for row in rows if row["kind"] == kind} for kind in ("cost", "memory"))
    base = cost.get(BASELINE)
    table = Table("sampler", "rounds", "fewer", "states", "seconds", "faster", "peak MiB", box=box.SIMPLE_HEAD)
    for name, row in cost.items():
        fewer, faster = (f"{base[key] / row[key]:.1f}x" if base else "-" for key in ("rounds", "seconds"))
        peak = f"{memory[name]['peak_bytes'] / 2**20:.0f}" if name in memory else "-"
        states = f"{row['evaluations']:.0f}"
        table.add_row(name, f"{row['rounds']:.1f}", fewer, states, f"{row['seconds']:.2f}", faster, peak)
    yield table
    table = Table("sampler", "Frechet distance", "spread", "repeats", box=box.SIMPLE_HEAD)
    for row in rows:
        if row["kind"] == "quality":
            table.add_row(row["sampler"], f"{row['frechet']:.3f}", f"{row['frechet_std']:.3f}", str(row["count"]))
    yield table


def plot(rows: Sequence[ImageRow], num_steps: int, path: Path) -> None:
    """Plot the speed-up over the plain DDPM against the window, in rounds and in time: the paper's figure 2.

    Args:
        num_steps: K of the DDPM, where the window "all" is plotted.
    """
    cost: Mapping[str, ImageRow] = {row["sampler"]: row for row in rows if row["kind"] == "cost"}
    drafts: dict[str, list[tuple[int, ImageRow]]] = defaultdict(list)
    for name, row in cost.items():
        if name != BASELINE:
            _, draft, window = name.split(":")
            drafts[draft].append((num_steps if window == "all" else int(window), row))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("rounds", "seconds"), ("fewer sequential calls", "faster"), strict=True
    ):
        for draft, points in drafts.items():
            windows, measured = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            axes.plot(windows, [cost[BASELINE][key] / row[key] for row in measured], "o-", label=draft)
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(xscale="log", xlabel="window", ylabel=f"times {label} than DDPM")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
