"""Run samplers over seeds, in parallel, into a file that survives interruptions.

    python scripts/sweep.py --checkpoints checkpoints/square --samplers ddpm asd:path:16 --seeds paper \\
        --out results/square.jsonl --workers 8

Running the command again continues where it stopped. Ctrl-C finishes the episodes in flight first; a second one quits
at once. The episodes do not depend on the workers, their number or their kind. Exit status: 0 complete, 1 complete but
for episodes with errors, 130 interrupted.
"""

# Worker processes, and the processes of a batch's environments, import this file: torch is imported where it is used.

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Literal

import gymnasium
import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import envs  # noqa: F401  (which registers the tasks)
from asd_policy.errors import AsdPolicyError, CheckpointError, ConfigError
from asd_policy.evaluation.backends import Backend, Serial
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray
from asd_policy.evaluation.results import Record, ResultsFile, check_same_settings, read_records
from asd_policy.evaluation.rollout import rollout
from asd_policy.evaluation.sweep import Plan, parse_seed_set, sweep
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env
from asd_policy.evaluation.worker import Parts
from asd_policy.interrupt import stop_requests
from asd_policy.threads import check_threads

MEASURED_STEPS = 32  # four chunks of the shipped policies
LINES = 20  # of progress, where there is no terminal


@dataclass(frozen=True)
class Arguments:
    """What to run, and where."""

    checkpoints: tuple[Path, ...]
    """Of one task each: folders with config.json and model.safetensors, or other libraries' files."""
    samplers: tuple[str, ...]
    """ddpm[:CAPTURE], ddim[:STEPS], asd[:DRAFT[:WINDOW[:CAPTURE]]]; WINDOW is a number or "all"."""
    out: Path
    """File of results, such as results/NAME.jsonl; an existing one is continued."""
    seeds: str = "smoke"
    """smoke (100000-100002), dev (200000-200019), paper (100000-100099, three times), or seeds such as 1,5,7-9."""
    repeats: int | None = None
    """How often each seed is run, with other noise each time. By default the seed set's, else once."""
    backend: Literal["serial", "processes", "ray"] = "processes"
    """Where to run: in this process, in processes of this machine, or on a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster, whose nodes must find the checkpoints where they are here. By default one of this machine."""
    workers: int | None = None
    """By default as many as there are CPUs for."""
    threads: int = 1
    """Of each worker; another number rounds otherwise."""
    batch: int = 1
    """Episodes that a worker runs at once: one policy for many environments, each in a process. For GPUs."""
    device: str = "cpu"
    dry_run: bool = False
    """Print what would be run and how long it would take, measured on a few chunks of each sampler."""


def main(arguments: Arguments) -> int:
    console = Console()
    windows = "auto" in ":".join(arguments.samplers).split(":")
    paths = read_checkpoints(arguments.checkpoints, windows)
    plan = make_plan(arguments, {task: sha256 for task, (_, sha256) in paths.items()})
    load = Load(paths, windows, arguments.device, arguments.threads, arguments.batch)
    if arguments.dry_run:
        return dry_run(plan, load, arguments, console)
    with stop_requests() as stop_requested, ResultsFile(arguments.out) as file:
        check_same_settings(file.records, plan.checkpoints, plan.settings)
        stopped = False
        with (
            progress(plan, file.records, console) as show,
            closing(sweep(plan, file, make_backend(arguments), load, stop_requested)) as records,
        ):
            try:
                for record in records:
                    show(record)
            except KeyboardInterrupt:  # the second one
                stopped = True
        return report(plan, file, stopped or stop_requested(), console)


def read_checkpoints(paths: Sequence[Path], windows: bool) -> dict[str, tuple[Path, str]]:
    """Task -> its checkpoint and the SHA-256 of that, with its calibrated windows if they matter."""
    from asd_policy.importers.checkpoint import fingerprint
    from asd_policy.importers.registry import read_checkpoint

    found: dict[str, tuple[Path, str]] = {}
    for path in paths:
        task = read_checkpoint(path).config.env_id
        if task in found:
            raise ConfigError(f"{found[task][0]} and {path} are both for {task}; a file holds one checkpoint per task.")
        gymnasium.spec(task)  # or it says which there are
        found[task] = path.absolute(), fingerprint(path, windows)
    return found


def make_plan(arguments: Arguments, checkpoints: Mapping[str, str]) -> Plan:
    from asd_policy.core import parse_sampler

    for text in arguments.samplers:
        parse_sampler(text)
    if arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}; expected 1 or more.")
    check_threads(arguments.threads)
    seeds, repeats = parse_seed_set(arguments.seeds)
    repeats = repeats if arguments.repeats is None else arguments.repeats
    settings = {"device": arguments.device, "threads": arguments.threads, "batch": arguments.batch}
    return Plan(checkpoints, arguments.samplers, seeds, repeats, settings)


@dataclass(frozen=True)
class Load:
    """Loads a task where its episodes are run."""

    checkpoints: Mapping[str, tuple[Path, str]]  # task -> path, SHA-256
    windows: bool  # whether that is with the calibrated windows
    device: str
    threads: int
    batch: int

    def __call__(self, task: str) -> Parts:
        import torch

        from asd_policy import DiffusionPolicy, load_policy
        from asd_policy.importers.checkpoint import fingerprint

        torch.set_num_threads(self.threads)
        path, expected = self.checkpoints[task]
        if fingerprint(path, self.windows) != expected:
            raise CheckpointError(f"{path} is not what it was when the sweep began, or is another on this machine.")
        policy = load_policy(path, device=self.device)

        def make_policy(label: str) -> DiffusionPolicy:
            own = policy.with_sampler(label)
            if own.needs_warm_up:
                own.warm_up(self.batch)  # or the first chunk's latency would hold the compilation
            return own

        return Parts(partial(gymnasium.make, f"envs:{task}", **policy.config.env_options), make_policy)


def make_backend(arguments: Arguments) -> Backend:
    if arguments.backend == "ray":
        return Ray(arguments.workers, arguments.threads, arguments.address, arguments.device.startswith("cuda"))
    if arguments.backend == "processes":
        return Processes(count_workers(arguments), arguments.threads)
    return Serial()


def count_workers(arguments: Arguments) -> int:
    if arguments.backend == "serial":
        return 1
    return arguments.workers if arguments.workers is not None else max(1, (os.cpu_count() or 1) // arguments.threads)


@contextmanager
def progress(plan: Plan, records: Sequence[Record], console: Console) -> Iterator[Callable[[Record], None]]:
    """Tell how far each task and sampler is: a bar each on a terminal, otherwise a line now and then."""
    with bars(plan, console) if console.is_terminal else lines(plan, console) as show:
        planned = set(plan.jobs)
        for record in records:
            if record.job in planned:
                show(record, True)
        yield lambda record: show(record, False)


@contextmanager
def bars(plan: Plan, console: Console) -> Iterator[Callable[[Record, bool], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as shown:
        totals = Counter((job.task, job.sampler) for job in plan.jobs)
        rows = {cell: shown.add_task(" ".join(cell), total=total, told="") for cell, total in totals.items()}
        everything = shown.add_task("all", total=len(plan.jobs), told="")
        tallies = {row: Tally() for row in (*rows.values(), everything)}

        def show(record: Record, known: bool) -> None:
            for row in (rows[record.task, record.sampler], everything):
                tallies[row].add(record)
                done = tallies[row].done
                if known:
                    shown.reset(row, completed=done, told=str(tallies[row]))  # what is known says nothing of the speed
                else:
                    shown.update(row, completed=done, told=str(tallies[row]))

        yield show


@contextmanager
def lines(plan: Plan, console: Console) -> Iterator[Callable[[Record, bool], None]]:
    tally, total = Tally(), len(plan.jobs)
    started, before = monotonic(), 0

    def show(record: Record, known: bool) -> None:
        nonlocal before
        tally.add(record)
        if known:
            before = tally.done
        elif tally.done * LINES // total > (tally.done - 1) * LINES // total:
            left = (monotonic() - started) / (tally.done - before) * (total - tally.done)
            console.print(f"{tally.done}/{total} episodes, {tally}, about {left / 60:.0f} min left", highlight=False)

    yield show


@dataclass
class Tally:
    done: int = 0
    successes: int = 0
    errors: int = 0

    def add(self, record: Record) -> None:
        self.done += 1
        self.successes += record.success
        self.errors += record.error is not None

    def __str__(self) -> str:
        return f"{self.successes} succeeded" + (f", {self.errors} with errors" if self.errors else "")


def report(plan: Plan, file: ResultsFile, stopped: bool, console: Console) -> int:
    """Say what the file holds; the exit status."""
    missing, planned = plan.missing(file.records), set(plan.jobs)
    errors = [record for record in file.records if record.error is not None and record.job in planned]
    for record in errors[:5]:
        console.print(
            f"{record.sampler}, env seed {record.env_seed}, repeat {record.repeat}: {record.error}",
            style="red",
            markup=False,
        )
    console.print(
        f"{file.path}: {len(planned) - len(missing)} of {len(planned)} episodes, {len(errors)} with errors.",
        soft_wrap=True,
    )
    if missing and stopped:
        console.print("Interrupted; the same command continues.", style="yellow")
        return 130
    if missing:
        console.print(f"{len(missing)} episodes lost their worker each time; the same command tries them again.")
    return 1 if missing or errors else 0


def dry_run(plan: Plan, load: Load, arguments: Arguments, console: Console) -> int:
    """Print the plan with an estimate of its cost, measured here with one worker."""
    records = read_records([arguments.out]) if arguments.out.exists() else []
    check_same_settings(records, plan.checkpoints, plan.settings)
    left = Counter((job.task, job.sampler) for job in plan.missing(records))
    table = Table("task", "sampler", "on file", "to run", "s a step", "steps", "hours", box=box.SIMPLE_HEAD)
    hours = 0.0
    for task in plan.checkpoints:
        parts = load(task)
        for sampler in plan.samplers:
            lengths = [r.length for r in records if (r.task, r.sampler) == (task, sampler) and r.error is None]
            steps = mean(lengths) if lengths else gymnasium.spec(task).max_episode_steps or MEASURED_STEPS
            to_run = left[task, sampler]
            seconds = seconds_per_step(parts, sampler, plan.env_seeds[0], arguments.batch) if to_run else 0.0
            cost = to_run * seconds * steps / 3600
            hours += cost
            on_file = len(plan.env_seeds) * plan.repeats - to_run
            told = (f"{seconds:.3f}", f"{steps:.0f}" if lengths else f"<= {steps}", f"{cost:.2f}")
            table.add_row(task, sampler, str(on_file), str(to_run), *told)
    console.print(table)
    workers = "the cluster's" if arguments.backend == "ray" else count_workers(arguments)
    console.print(
        f"{sum(left.values())} of {len(plan.jobs)} episodes to run: {hours:.2f} hours of one worker, to be divided by "
        f"{workers} if each has cores of its own. Seconds: measured now, in {MEASURED_STEPS} steps of each sampler. "
        "Steps: the mean of the episodes on file, or at most the time limit.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def seconds_per_step(parts: Parts, sampler: str, env_seed: int, batch: int) -> float:
    """What a control step of an episode costs, the beginning of one included, and compilation left out."""
    make_env, policy = partial(cut, parts.make_env), parts.make_policy(sampler)
    if batch == 1:
        env = make_env()
        seconds = timed(lambda: rollout(env, policy, env_seed, 0).length)
        env.close()
    else:
        envs = vector_env(make_env, batch)
        seeds, noise_seeds = [env_seed] * batch, range(batch)
        seconds = timed(lambda: sum(episode.length for episode in rollout_batch(envs, policy, seeds, noise_seeds)))
        kill_envs(envs)
    return seconds


def timed(run: Callable[[], int]) -> float:
    """Seconds a step of what runs so many steps; once before, because the first run compiles."""
    run()
    started = monotonic()
    steps = run()
    return (monotonic() - started) / steps


def cut(make_env: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(make_env(), MEASURED_STEPS)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except (AsdPolicyError, gymnasium.error.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
