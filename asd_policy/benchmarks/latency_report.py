"""Latencies as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from asd_policy.benchmarks.latency import Timing

BASELINE = "diffusers loop"
"""The label of diffusers' loop."""
PLOTTED_WINDOW = ":24"
"""Ending of the samplers whose acceptance is plotted."""


def table(timings: Sequence[Timing]) -> Table:
    """One row for each sampler. One of the samplers must be `BASELINE`."""
    base = next(t for t in timings if t.sampler == BASELINE)
    caption = (
        f"ms, p95: median and 95th percentile of a chunk, without a warm start. faster: than the {BASELINE}. states: "
        "evaluated by the network. ops: torch's operations in a round, on a GPU kernels. outside: operations outside "
        "the network. network: its share of the time."
    )
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    result.add_column("sampler", no_wrap=True)
    for name in ("ms", "p95", "faster", "rounds", "states", "ops", "outside", "network"):
        result.add_column(name, justify="right", no_wrap=True)
    for t in timings:
        counts = (t.evaluations, t.operations, t.operations - t.network_operations)
        numbers = (f"{t.rounds:.1f}", *(f"{count:.0f}" for count in counts), f"{t.network_share:.0%}")
        shown = ("-" if "nan" in number else number for number in numbers)
        result.add_row(
            t.sampler, f"{t.median_ms:.0f}", f"{t.p95_ms:.0f}", f"{base.median_ms / t.median_ms:.1f}x", *shown
        )
    return result


def plot(timings: Sequence[Timing], growth: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Plot latency against window, acceptance against step, and rounds against the number of steps.

    Args:
        growth: rounds by draft and number of denoising steps.
    """
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    latencies, acceptance, rounds = figure.subplots(1, 3)
    _plot_latencies(timings, latencies)
    kept = {t.sampler.removesuffix(":compile"): t.acceptance for t in timings if any(t.acceptance)}
    for sampler, by_step in kept.items():
        if sampler.endswith(PLOTTED_WINDOW):
            acceptance.plot(by_step[:-1], label=sampler)
    acceptance.set(xlabel="denoising step (0 is the noisiest)", ylabel="drafts kept", ylim=(0, 1.02))
    for draft, by_steps in growth.items():
        rounds.plot(list(by_steps), list(by_steps.values()), "o-", label=draft)
    rounds.set(xlabel="K, denoising steps", ylabel="rounds, window K", xscale="log", yscale="log")
    for axes in (latencies, acceptance, rounds):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _plot_latencies(timings: Sequence[Timing], axes: Axes) -> None:
    """A line over the windows for each draft and capture, and a level line for each sampler without a fixed window."""
    lines: dict[str, dict[int, float]] = {}
    for t in timings:
        name, *options = t.sampler.split(":")
        if name == "asd" and len(options) > 1 and options[1] != "auto":
            draft, window, *capture = options
            steps = len(t.acceptance) if window == "all" else int(window)
            lines.setdefault(" ".join((draft, *capture)), {})[steps] = t.median_ms
        else:
            axes.axhline(t.median_ms, linestyle=":", color="gray")
            axes.text(0.02, t.median_ms, t.sampler, fontsize="small", va="bottom", transform=axes.get_yaxis_transform())
    for label, by_window in lines.items():
        axes.plot(sorted(by_window), [by_window[window] for window in sorted(by_window)], "o-", label=label)
    axes.set(xlabel="window", ylabel="ms per chunk, median", xscale="log", yscale="log")
