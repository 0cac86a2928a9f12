"""The Markdown table of `asd-policy gpu-check`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

GpuRow = dict[str, Any]
"""One measurement: its section, name and values, or its error or the reason why it was skipped."""

WIDTH = 120
MEASURED = Callable[[float], str]


def table(results: Mapping[str, Any]) -> str:
    """All sections in lines of at most `WIDTH` columns; `results` as in gpu_check.json."""
    rows: Sequence[GpuRow] = results["rows"]
    parts = [_about(results)]
    batches = dict.fromkeys(row["section"] for row in rows if row["section"].startswith("batch "))
    for section in batches:
        parts += [f"## A chunk, {section}", _section(rows, section, "sampler", CHUNKS)]
    if batches:
        parts.append(_wrapped(CHUNKS_EXPLAINED))
    if any(row["section"] == "network" for row in rows):
        parameters = results.get("wide_parameters", 0) / 1e6
        parts += [f"## A U-Net of {parameters:.1f} million parameters", _section(rows, "network", "what", NETWORK)]
        parts.append(_wrapped("vs call: against one call of the network on as many rows as the window has steps."))
    if any(row["section"] == "precision" for row in rows):
        parts += ["## Precision", _section(rows, "precision", "precision", PRECISION), _wrapped(PRECISION_EXPLAINED)]
    parts += ["## Tests", *(_tests(row) for row in rows if row["section"] == "tests")]
    if results["sections"]:
        told = "; ".join(f"{name}: {what}" for name, what in results["sections"].items())
        parts.append(_wrapped(f"Sections: {told}."))
    return "\n\n".join(parts) + "\n"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _one(value: float) -> str:
    return f"{value:.1f}"


CHUNKS: dict[str, tuple[str, MEASURED]] = {
    "ms": ("median_ms", _two),
    "p95": ("p95_ms", _two),
    "chunks": ("chunks", "{:.0f}".format),
    "rounds": ("rounds", _one),
    "kernels": ("kernels_a_round", _one),
    "outside": ("outside_kernels_a_round", _one),
    "network": ("network_share", "{:.0%}".format),
    "waits": ("synchronisations", "{:.0f}".format),
    "MiB": ("peak_mib", "{:.0f}".format),
    "first, s": ("first_call_s", _one),
}
NETWORK: dict[str, tuple[str, MEASURED]] = {
    "ms": ("ms", "{:.3f}".format),
    "vs call": ("against_call", _two),
    "MiB": ("peak_mib", "{:.0f}".format),
}
PRECISION: dict[str, tuple[str, MEASURED]] = {
    "ms": ("median_ms", _two),
    "p95": ("p95_ms", _two),
    "rounds": ("rounds", _one),
    "largest difference": ("largest_difference", "{:.1e}".format),
    "mean": ("mean_difference", "{:.1e}".format),
}
CHUNKS_EXPLAINED = (
    "ms, p95: the call of `act` that samples a chunk, from NumPy to NumPy. rounds: sequential network calls. kernels: "
    "in one round of the loop (two network calls with the draft frozen); outside: kernels outside the network. "
    "network: for CUDA graphs, the time of its captured calls alone over the time of the chunk; otherwise its share "
    "of the GPU's busy time. waits: synchronisations of the host in a chunk. MiB: peak memory of the first chunk, "
    "less the memory allocated before. first: seconds of the first chunk, with compilation and capture; code "
    "that earlier rows compiled is reused."
)
PRECISION_EXPLAINED = (
    "The timed chunk is asd:path:24's. Differences: chunks of the plain DDPM minus those in float32, from the same "
    "noise, in normalised actions, which lie in [-1, 1]."
)


def _about(results: Mapping[str, Any]) -> str:
    head = f"{results.get('card', results['device'])}, driver {results.get('driver', 'none')}, CUDA {results['cuda']}"
    versions = f"torch {results['torch']}, triton {results['triton']}, diffusers {results['diffusers']}"
    dry = "A dry run: its numbers mean nothing. " if results["dry_run"] else ""
    return _wrapped(f"{dry}{head}; {versions}; commit {results['commit']}; {results['date']}.")


def _section(rows: Sequence[GpuRow], section: str, first: str, columns: Mapping[str, tuple[str, MEASURED]]) -> str:
    """The table of a section, followed by the reasons for empty cells."""
    found = [row for row in rows if row["section"] == section]
    lines = [[first, *columns]]
    lines += [[row["row"], *(_cell(row, key, show) for key, show in columns.values())] for row in found]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [_line(line, widths) for line in lines]
    rule = "|" + "|".join([":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    text = "\n".join([shown[0], rule, *shown[1:]])
    notes = [_wrapped(f"{row['row']}: {_note(row)}", "- ") for row in found if _note(row)]
    return "\n\n".join([text, "\n".join(notes)] if notes else [text])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cells[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells[1:], widths[1:], strict=True))]
    return "| " + " | ".join(padded) + " |"


def _cell(row: GpuRow, key: str, show: MEASURED) -> str:
    value = row.get(key)
    return "-" if value is None or not math.isfinite(value) else show(value)


def _note(row: GpuRow) -> str:
    told = [f"error: {row['error']}"] if "error" in row else []
    told += [f"not measured: {row['skipped']}"] if "skipped" in row else []
    told += [f"kernels not counted: {row['counts_skipped']}"] if "counts_skipped" in row else []
    told += [f"the loop is {row['loop']}"] if row.get("loop", "diffusers") != "diffusers" else []
    return "; ".join(told)


def _tests(row: GpuRow) -> str:
    if "passed" not in row and _note(row):
        return _wrapped(f"`{row['row']}`: {_note(row)}")
    counts = ", ".join(f"{row[name]} {name}" for name in ("passed", "failed", "error", "skipped") if row.get(name))
    told = [counts or "no test ran", "" if row["finished"] else "stopped: no time was left"]
    told += [f"went wrong: {', '.join(row['wrong'])}" if row["wrong"] else ""]
    missing = ", ".join(row["missing_packages"])
    told += [f"not run: {', '.join(row['not_imported'])} (missing: {missing})" if row["not_imported"] else ""]
    return _wrapped(f"`{row['row']}`: {'; '.join(part for part in told if part)}")


def _wrapped(text: str, first: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first))
