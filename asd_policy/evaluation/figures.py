"""The report's figures: inline SVG in the page's colours, so that they follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from asd_policy.evaluation.results import Record
from asd_policy.evaluation.summary import mean_acceptance

SERIES = 8
"""The page defines the colours --series-0 and following. Further samplers reuse them with other dashes."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)))

# Placeholder colours in matplotlib's SVG, replaced by the page's.
INK, RULE = "#010203", "#020304"

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.alpha": 0.5,
    "xtick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.color": RULE,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
}

SHOWN = 0.995
"""The largest share of chunks in the latency figure. The first chunk of a compiled sampler waits for the compiler."""

Cells = Mapping[str, Sequence[Record]]
"""Sampler's label -> its episodes."""


@matplotlib.rc_context(STYLE)
def latency(cells: Cells, prefix: str) -> str:
    """An SVG of the share of chunks that were sampled within a time, one line for each sampler.

    Args:
        cells: sampler's label -> its episodes.
        prefix: a prefix for the ids in the SVG, different for each figure of a page.
    """
    figure, axes = _figure("chunk latency, ms", "share of chunks")
    axes.set(xscale="log", ylim=(0, 1))
    share = np.linspace(0, SHOWN, 200)
    for index, records in enumerate(cells.values()):
        milliseconds = [1000 * seconds for record in records for seconds in record.latency]
        if milliseconds:
            axes.plot(np.quantile(milliseconds, share), share, **_line(index))
    _log_ticks(axes.xaxis)
    return _svg(figure, prefix)


@matplotlib.rc_context(STYLE)
def acceptance(cells: Cells, prefix: str) -> str:
    """An SVG of the share of drafts kept at each denoising step, one line for each speculative sampler."""
    figure, axes = _figure("denoising step (0 is the noisiest)", "drafts kept")
    axes.set(ylim=(0, 1.02))
    for index, records in enumerate(cells.values()):
        kept = mean_acceptance(records)
        if kept.any():
            axes.plot(kept, **_line(index))
    return _svg(figure, prefix)


@matplotlib.rc_context(STYLE)
def rounds(cells: Cells, prefix: str) -> str:
    """An SVG of the network calls of an episode's 1st, 2nd … chunk: the mean, and the 10th to 90th percentile."""
    figure, axes = _figure("chunk of the episode", "sequential network calls")
    axes.set(yscale="log")
    for index, records in enumerate(cells.values()):
        chunks = _by_chunk([record.rounds for record in records])
        if not chunks:
            continue
        number = np.arange(1, len(chunks) + 1)
        low, high = np.transpose([np.percentile(calls, (10, 90)) for calls in chunks])
        axes.fill_between(number, low, high, color=_line(index)["color"], alpha=0.2, linewidth=0)
        axes.plot(number, [np.mean(calls) for calls in chunks], **_line(index))
    _log_ticks(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, prefix)


def _by_chunk(episodes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The episodes' 1st chunks, 2nd chunks …, as long as a tenth of the episodes have that many."""
    longest = max(map(len, episodes), default=0)
    columns = [[episode[chunk] for episode in episodes if chunk < len(episode)] for chunk in range(longest)]
    return [column for column in columns if len(column) >= len(episodes) / 10]


def _figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.5), layout="constrained")
    return figure, figure.add_subplot(xlabel=xlabel, ylabel=ylabel)


def _log_ticks(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))


def _line(index: int) -> dict[str, Any]:
    """The colour and dashes of the sampler at this place of the legend."""
    return {"color": f"#0300{index % SERIES:02x}", "linestyle": DASHES[index // SERIES % len(DASHES)]}


def _svg(figure: Figure, prefix: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)  # ids must be unique on a page
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"#0300([0-9a-f]{2})", lambda match: f"var(--series-{int(match[1], 16)})", text)
    text = text.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    return text.replace("<svg", '<svg aria-hidden="true"', 1)
