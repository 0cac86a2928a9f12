"""Report results files: a self-contained HTML page, a Markdown table, and videos of chosen episodes.

asd-policy report results/square.jsonl --out results/report --videos 2 --checkpoints square
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import tyro
from rich.console import Console

from asd_policy.cli import COMPLETE, INTERRUPTED
from asd_policy.cli.tasks import TaskLoader, as_recorded
from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.filming import choose, films
from asd_policy.evaluation.render import to_html, to_markdown
from asd_policy.evaluation.report import TaskReport, Video, analyze
from asd_policy.evaluation.results import Record, read_records
from asd_policy.evaluation.worker import LoadedTask
from asd_policy.importers.checkpoint import fingerprint
from asd_policy.importers.shipped import find_checkpoint


@dataclass(frozen=True)
class Arguments:
    """The results to report, and how."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by asd-policy sweep or evaluate."""
    out: Path = Path("results/report")
    """Folder for index.html, report.md and the videos."""
    margin: float = 5.0
    """The largest negligible difference of success rates, in points. Choose it before you see the results."""
    baseline: str = "ddpm"
    """The sampler to compare the others with."""
    videos: tuple[str, ...] = ()
    """A number N, to film the first N successes and N failures of each sampler; or episodes, as
    TASK:SAMPLER:SEED[:REPEAT]. They are run again from their seeds."""
    checkpoints: tuple[Path, ...] = ()
    """For the videos: the checkpoints of the episodes."""
    modules: tuple[str, ...] = ()
    """For the videos: modules to import first, which register environments, drafts or networks."""
    device: str = "cpu"
    """For the videos: the device. On another device than the results', actions differ by rounding; the page says so."""


def main(arguments: Arguments) -> int:
    console = Console()
    records = read_records(arguments.results)
    tasks = analyze(records, arguments.margin / 100, arguments.baseline)
    chosen = choose(records, arguments.videos)
    checkpoints = find_checkpoints(chosen, arguments.checkpoints)
    page = arguments.out / "index.html"
    markdown = to_markdown(tasks)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        page.with_name("report.md").write_text(markdown)
        page.write_text(to_html(tasks))
    except OSError as error:
        raise DataError(f"Cannot write the report to {arguments.out}: {error.strerror}.") from error
    print(markdown)  # the console would wrap it
    console.print(f"Wrote {page} and report.md")
    return record_videos(tasks, chosen, checkpoints, page, arguments, console)


class Found(NamedTuple):
    """A checkpoint, and whether its SHA-256 includes the calibrated windows and the first guess."""

    path: Path
    windows: bool
    guess: bool


def find_checkpoints(chosen: Sequence[Record], paths: Sequence[Path]) -> dict[str, Found]:
    """SHA-256 -> the checkpoint, for the episodes to film.

    Raises:
        ConfigError: if a checkpoint is not among the paths.
    """
    folders = [find_checkpoint(path) for path in paths]
    kinds = [Found(path, *kept) for path in folders for kept in product((True, False), (False, True))]
    found = {fingerprint(*kind): kind for kind in kinds}
    for record in chosen:
        if record.checkpoint_sha256 not in found:
            raise ConfigError(
                f"To film {record.task}, name the checkpoint whose SHA-256 is {record.checkpoint_sha256} with "
                f"--checkpoints; got {', '.join(map(str, paths)) or 'none'}."
            )
    return found


def record_videos(
    tasks: Sequence[TaskReport],
    chosen: Sequence[Record],
    checkpoints: Mapping[str, Found],
    page: Path,
    arguments: Arguments,
    console: Console,
) -> int:
    """Film the episodes, and write the page again with the finished videos. Returns the exit status."""

    def load(record: Record) -> LoadedTask:
        found = checkpoints[record.checkpoint_sha256]
        task = {record.task: (found.path, record.checkpoint_sha256)}
        settings = as_recorded(record.settings, arguments.device)
        loader = TaskLoader(task, found.windows, settings, True, arguments.modules, found.guess)
        return loader(record.task)

    def started(record: Record) -> None:
        status.update(f"Filming {record.task} {record.sampler} seed {record.env_seed}")

    videos: list[Video] = []
    try:
        with console.status("Loading the checkpoint") as status:
            for video in films(chosen, load, page, started):
                videos.append(video)
                told = "" if video.same else ": NOT the recorded actions"
                console.print(f"Wrote {page.parent / video.path}{told}")
    except KeyboardInterrupt:
        console.print("Interrupted: the page links the finished videos.", style="yellow")
        return INTERRUPTED
    finally:
        if videos:
            page.write_text(to_html(tasks, videos))
    return COMPLETE
