"""Summarises the episodes of several samplers in a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from asd_policy.evaluation.results import Record
from asd_policy.evaluation.rollout import Episode
from asd_policy.evaluation.stats import wilson

Results = Mapping[str, Sequence[Episode] | Sequence[Record]]
"""Sampler's label -> its episodes."""


@dataclass(frozen=True)
class Row:
    """One sampler's line of the table."""

    sampler: str
    episodes: int
    successes: int
    success_interval: tuple[float, float]  # Wilson, 95 %
    length: float  # median control steps
    latency_ms: float  # median per chunk; NaN, like the fields below, if every episode raised before its first chunk
    latency_p95_ms: float
    rounds: float  # mean per chunk
    evaluations: float  # mean per chunk


def summarize(results: Results) -> list[Row]:
    """One row for each sampler with a finished episode."""
    return [_row(sampler, episodes) for sampler, episodes in results.items() if episodes]


def _row(sampler: str, episodes: Sequence[Episode] | Sequence[Record]) -> Row:
    successes = sum(episode.success for episode in episodes)
    # (C, 3) of all chunks: ms, rounds, evaluations
    chunks = np.array([chunk for e in episodes for chunk in zip(e.latency, e.rounds, e.evaluations, strict=True)])
    if not len(chunks):
        chunks = np.full((1, 3), np.nan)
    latency = 1000 * chunks[:, 0]
    return Row(
        sampler=sampler,
        episodes=len(episodes),
        successes=successes,
        success_interval=wilson(successes, len(episodes)),
        length=float(np.median([episode.length for episode in episodes])),
        latency_ms=float(np.median(latency)),
        latency_p95_ms=float(np.percentile(latency, 95)),
        rounds=float(chunks[:, 1].mean()),
        evaluations=float(chunks[:, 2].mean()),
    )


def table(rows: Sequence[Row], baseline: str = "ddpm") -> Table:
    """A table that fits 80 columns. Speed-ups are relative to the sampler `baseline`, if it is present."""
    base = next((row for row in rows if row.sampler == baseline), None)
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="95 %: Wilson interval. steps: median episode. ms, p95: latency of a chunk.\n"
        f"rounds: its sequential network calls. faster, fewer: against {baseline}.",
        caption_justify="left",
    )
    result.add_column("sampler", no_wrap=True)
    for name in ("success", "95 %", "steps", "ms", "p95", "faster", "rounds", "fewer"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        low, high = row.success_interval
        result.add_row(
            row.sampler,
            f"{row.successes}/{row.episodes}",
            f"{low:.2f}-{high:.2f}",
            f"{row.length:.0f}",
            f"{row.latency_ms:.0f}",
            f"{row.latency_p95_ms:.0f}",
            f"{base.latency_ms / row.latency_ms:.1f}x" if base else "-",
            f"{row.rounds:.1f}",
            f"{base.rounds / row.rounds:.1f}x" if base else "-",
        )
    return result


def mean_acceptance(episodes: Sequence[Episode] | Sequence[Record]) -> NDArray[np.float64]:
    """The share of drafts kept at each step (K - 1,); empty for a sampler without drafts.

    The last step is left out: it adds no noise, so it is computed exactly and keeps no draft.
    """
    known = [episode.acceptance for episode in episodes if _speculates(episode)]
    return np.mean(known, axis=0)[:-1] if known else np.zeros(0)


def _speculates(episode: Episode | Record) -> bool:
    """Whether the cost of any chunk differs from a DDPM's: one call on one state for each step."""
    steps = len(episode.acceptance)
    return steps > 0 and {*episode.rounds, *episode.evaluations} != {steps}


def plot_acceptance(results: Results, path: Path) -> None:
    """Plot the share of drafts kept at each denoising step as a PNG, one line for each speculative sampler."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel="denoising step (0 is the noisiest)", ylabel="drafts kept", ylim=(0, 1.02))
    for sampler, episodes in results.items():
        acceptance = mean_acceptance(episodes)
        if acceptance.any():
            axes.plot(acceptance, label=sampler)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)
