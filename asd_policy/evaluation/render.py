"""Renders a report as one HTML page and as Markdown. Text from records is escaped, because files may be untrusted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from asd_policy.evaluation import figures
from asd_policy.evaluation.report import TaskReport, Video
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.stats import Comparison
from asd_policy.evaluation.summary import Row, mean_acceptance


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.1f}"


def number(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def times(baseline: float, value: float) -> str:
    """How many times smaller the value is than the baseline, such as "3.2x"."""
    return "-" if math.isnan(baseline / value) else f"{baseline / value:.1f}x"


def lowest(rows: dict[str, Row]) -> float:
    """The start of a success axis that shows every interval, in steps of 10 %."""
    return math.floor(10 * min(row.success_interval[0] for row in rows.values())) / 10


def widest(comparisons: dict[str, Comparison]) -> float:
    """Half the range of a difference axis that shows every interval and the margin, in steps of 5 points."""
    ends = [max(2 * it.margin, *map(abs, it.interval)) for it in comparisons.values()]
    return math.ceil(20 * max(ends)) / 20


def kept(cells: dict[str, list[Record]]) -> dict[str, float]:
    """Speculative sampler -> mean share of drafts kept."""
    shares = {sampler: mean_acceptance(records) for sampler, records in cells.items()}
    return {sampler: float(share.mean()) for sampler, share in shares.items() if share.any()}


def verdict(comparison: Comparison) -> str:
    """The verdict in words. If undecided, with the number of env seeds to add."""
    margin = f"{100 * comparison.margin:g}"
    if comparison.verdict == "equivalent":
        return f"equivalent within {margin} points"
    if comparison.verdict == "undecided" and comparison.more_seeds:
        return f"undecided (+{comparison.more_seeds} seeds)"
    return comparison.verdict


def to_html(tasks: Sequence[TaskReport], videos: Sequence[Video] = (), title: str = "Evaluation") -> str:
    """One HTML page without external files."""
    environment = Environment(
        loader=PackageLoader("asd_policy.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=points, number=number, verdict=verdict, lowest=lowest, widest=widest, kept=kept
    )
    environment.globals.update(times=times, figures=figures)
    return environment.get_template("report.html.jinja").render(tasks=tasks, videos=videos, title=title)


def to_markdown(tasks: Sequence[TaskReport]) -> str:
    """Markdown tables that fit a terminal and that GitHub renders."""
    return "\n\n".join(_task_markdown(task) for task in tasks) + "\n"


def _task_markdown(task: TaskReport) -> str:
    parts = [f"## {_plain(task.task)}", *(f"> **Note:** {_plain(warning)}" for warning in task.warnings)]
    base = task.baseline
    header = ["sampler", "success", "95 %", "steps", "ms", "p95", "faster", "rounds", "fewer"]
    body = [
        [
            _plain(row.sampler),
            f"{row.successes}/{row.episodes}",
            "-".join(map(percent, row.success_interval)),
            number(row.length),
            number(row.latency_ms),
            number(row.latency_p95_ms),
            times(base.latency_ms, row.latency_ms) if base else "-",
            number(row.rounds, 1),
            times(base.rounds, row.rounds) if base else "-",
        ]
        for row in task.rows.values()
    ]
    parts.append(_table(header, body))
    if task.comparisons:
        header = [f"against {_plain(task.baseline_name)}", "shared", "wins", "losses", "points, 95 %", "p", "verdict"]
        body = [
            [
                _plain(sampler),
                str(it.episodes),
                str(it.only_sampler),
                str(it.only_baseline),
                f"{points(it.difference)} ({' to '.join(map(points, it.interval))})",
                f"{it.p_value:.2g}",
                verdict(it),
            ]
            for sampler, it in task.comparisons.items()
        ]
        parts.append(_table(header, body))
    return "\n\n".join(parts)


def _table(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table with columns of fixed width; all but the first are right-aligned."""
    widths = [max(3, *map(len, column)) for column in zip(header, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (header, rule, *body):
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text from a file with Markdown's characters escaped."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
