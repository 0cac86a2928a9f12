"""Output folders of evaluations, and their summaries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from asd_policy.errors import DataError
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.summary import Row, plot_acceptance, summarize
from asd_policy.jsonl import clear

EPISODES = "episodes.jsonl"


def choose_folder(out: Path, overwrite: bool) -> Path:
    """Make and return the folder `out`. If it holds an earlier run and `overwrite` is false, a number is appended.

    Raises:
        ConfigError: if another process is writing the run to overwrite.
        DataError: if the folder cannot be written.
    """
    for number in count(1):
        folder = out if number == 1 else Path(f"{out}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                clear(folder / EPISODES)
            else:
                (folder / EPISODES).open("x").close()
        except FileExistsError as error:
            if not folder.is_dir():
                raise DataError(f"Cannot write to the folder {folder}: it is a file.") from error
        except OSError as error:
            raise DataError(f"Cannot write to the folder {folder}: {error.strerror}.") from error
        else:
            break
    return folder


def write_summary(folder: Path, results: Mapping[str, Sequence[Record]], provenance: Mapping[str, Any]) -> list[Row]:
    """Write results.json and acceptance.png, and return the rows of the table.

    Args:
        results: sampler's label -> its records.
        provenance: the settings and software of the results, as JSON values.
    """
    rows = summarize(results)
    summary = {"provenance": dict(provenance), "summary": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot_acceptance(results, folder / "acceptance.png")
    return rows
