"""Report the results of sweeps: an HTML page that needs nothing else, a Markdown table, videos of chosen episodes.

python scripts/report.py results/square.jsonl --out results/report --videos 2 --checkpoints checkpoints/square
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import gymnasium
import torch
import tyro
from rich.console import Console

from asd_policy import AsdPolicyError, DiffusionPolicy, load_policy
from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.render import to_html, to_markdown
from asd_policy.evaluation.report import TaskReport, Video, analyze
from asd_policy.evaluation.results import Record, read_records
from asd_policy.evaluation.videos import film
from asd_policy.importers.checkpoint import fingerprint


@dataclass(frozen=True)
class Arguments:
    """What to report."""

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Files that scripts/sweep.py wrote."""
    out: Path = Path("results/report")
    """Folder for index.html, report.md and the videos."""
    margin: float = 5.0
    """The largest difference of success that does not matter, in points. Choose it before you see the results."""
    baseline: str = "ddpm"
    """The sampler to compare the others with."""
    videos: tuple[str, ...] = ()
    """A number: of successes and of failures to film, the first of each sampler. Or episodes, as
    TASK:SAMPLER:SEED[:REPEAT]. They are run again from their seeds."""
    checkpoints: tuple[Path, ...] = ()
    """For the videos: what the episodes were run with."""
    device: str = "cpu"
    """For the videos. On another one than the results' the actions differ by rounding, and the page says so."""


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
    print(markdown)  # as it is: the console would wrap it
    console.print(f"Wrote {page} and report.md")
    return record_videos(tasks, chosen, checkpoints, page, arguments.device, console)


def choose(records: Sequence[Record], wanted: Sequence[str]) -> list[Record]:
    """The episodes to film, task by task.

    Raises:
        ConfigError: naming what is no episode, or one that broke.
    """
    if len(wanted) == 1 and re.fullmatch("[0-9]{1,9}", wanted[0]):
        whole = [record for record in records if record.error is None]
        cells: dict[tuple[str, str, bool], list[Record]] = {}
        for record in sorted(whole, key=lambda record: (record.env_seed, record.repeat)):
            cells.setdefault((record.task, record.sampler, record.success), []).append(record)
        chosen = [record for cell in cells.values() for record in cell[: int(wanted[0])]]
    else:
        chosen = [find(records, name) for name in wanted]
    return sorted(chosen, key=lambda record: record.task)


def find(records: Sequence[Record], name: str) -> Record:
    """The episode TASK:SAMPLER:SEED:REPEAT, or without its repeat if that is 0."""
    names = {f"{r.task}:{r.sampler}:{r.env_seed}": r for r in records if r.repeat == 0}
    names |= {f"{r.task}:{r.sampler}:{r.env_seed}:{r.repeat}": r for r in records}
    if name not in names:
        raise ConfigError(
            f"The results hold no episode {name!r}; expected TASK:SAMPLER:SEED[:REPEAT], such as {next(iter(names))}, "
            "or a number."
        )
    if names[name].error is not None:
        raise ConfigError(f"Episode {name} broke ({names[name].error}); there is nothing to film.")
    return names[name]


def find_checkpoints(chosen: Sequence[Record], paths: Sequence[Path]) -> dict[str, Path]:
    """SHA-256 -> the checkpoint, for the episodes to film.

    Raises:
        ConfigError: if one is not among the paths.
    """
    found = {fingerprint(path, windows): path for path in paths for windows in (False, True)}
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
    checkpoints: dict[str, Path],
    page: Path,
    device: str,
    console: Console,
) -> int:
    """Film the episodes, and write the page again with those that were finished. Returns the exit status."""
    videos: list[Video] = []
    try:
        for video in films(chosen, checkpoints, page, device, console):
            videos.append(video)
            console.print(f"Wrote {page.parent / video.path}" + ("" if video.same else ": NOT the recorded actions"))
    except KeyboardInterrupt:
        console.print("Interrupted: the page links the videos that were finished.", style="yellow")
        return 130
    finally:
        if videos:
            page.write_text(to_html(tasks, videos))
    return 0


def films(
    chosen: Sequence[Record], checkpoints: dict[str, Path], page: Path, device: str, console: Console
) -> Iterator[Video]:
    """Film the episodes one after the other."""
    for checkpoint, records in groupby(chosen, key=lambda record: checkpoints[record.checkpoint_sha256]):
        policy = load_policy(checkpoint, device=device)
        with closing(
            gymnasium.make(f"envs:{policy.config.env_id}", render_mode="rgb_array", **policy.config.env_options)
        ) as env:
            for record in records:
                with console.status(f"Filming {record.task} {record.sampler} seed {record.env_seed}"):
                    yield film(env, set_up(policy, record), record, page)


def set_up(policy: DiffusionPolicy, record: Record) -> DiffusionPolicy:
    """The policy with the record's sampler, and with as many threads."""
    threads = record.settings.get("threads")
    if isinstance(threads, int) and 1 <= threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)
    return policy.with_sampler(record.sampler)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except (AsdPolicyError, gymnasium.error.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
