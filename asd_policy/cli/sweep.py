"""Run samplers over many seeds in parallel, into a file that survives interruptions.

    asd-policy sweep --checkpoints square --samplers ddpm asd:path:16 --seeds paper \\
        --out results/square.jsonl --workers 8

The same command continues an interrupted sweep. The first Ctrl-C finishes the running episodes; a second one quits at
once. Results do not depend on the backend or the number of workers. Exit status: 0 complete, 1 complete with errors
in some episodes, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tyro.extras import literal_type_from_choices

from asd_policy.cli import COMPLETE, INCOMPLETE, INTERRUPTED
from asd_policy.cli.episodes import print_errors, show_episodes
from asd_policy.cli.tasks import TaskLoader, check_samplers, read_checkpoints, run_settings, uses_windows_file
from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends.registry import BACKENDS, Resources, make_backend
from asd_policy.evaluation.environments import import_modules
from asd_policy.evaluation.estimate import MEASURED_STEPS, estimate
from asd_policy.evaluation.results import ResultsFile, check_same_settings, read_records
from asd_policy.evaluation.seeds import parse_seed_set
from asd_policy.evaluation.sweep import Plan, sweep
from asd_policy.interrupt import stop_requests
from asd_policy.threads import check_threads


@dataclass(frozen=True)
class Arguments:
    """The episodes to run, and where."""

    checkpoints: tuple[Path, ...]
    """One for each task: a folder with config.json and model.safetensors, another library's file, or a Hugging Face hub
    id (user/name or user/name@revision)."""
    samplers: tuple[str, ...]
    """ddpm[:CAPTURE], ddim[:STEPS], asd[:DRAFT[:WINDOW[:CAPTURE]]]; WINDOW is a number or "all"."""
    out: Path
    """Results file, such as results/NAME.jsonl. An existing file is continued."""
    seeds: str = "smoke"
    """smoke (100000-100002), dev (200000-200019), paper (100000-100099, three times), or seeds such as 1,5,7-9."""
    repeats: int | None = None
    """Runs of each seed, each with other noise. By default the seed set's number, else 1."""
    backend: Annotated[str, tyro.conf.arg(constructor=literal_type_from_choices(BACKENDS))] = "processes"
    """Where to run: serial (in this process), processes (of this machine), or ray (a Ray cluster)."""
    address: str | None = None
    """Address of a Ray cluster. Its nodes must find the checkpoints at the same paths. By default a cluster is started
    on this machine."""
    workers: int | None = None
    """Number of workers. By default as many as the CPUs allow."""
    threads: int = 1
    """CPU threads of each worker. Another number changes rounding."""
    batch: int = 1
    """Episodes that a worker runs at once: one policy for several environments, each in its own process. For GPUs."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    success: str | None = None
    """For environments from outside: the key of info that reports success, or "terminated" if every episode that
    terminates has succeeded. By default "success" or "is_success"."""
    max_steps: int | None = None
    """Time limit in control steps. By default the environment's."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register environments, drafts or networks, such as gym_pusht."""
    dry_run: bool = False
    """Print the plan and its duration, estimated from a few chunks of each sampler, and run nothing."""


def main(arguments: Arguments) -> int:
    console = Console()
    import_modules(arguments.modules)  # samplers may use a draft or capture that they register
    windows = uses_windows_file(arguments.samplers)
    checkpoints = read_checkpoints(arguments.checkpoints, windows, arguments.modules)
    plan = make_plan(arguments, {task: sha256 for task, (_, sha256) in checkpoints.items()})
    load = TaskLoader(checkpoints, windows, plan.settings, modules=arguments.modules)
    if arguments.dry_run:
        return dry_run(plan, load, arguments, console)
    with stop_requests() as stop_requested, ResultsFile(arguments.out) as file:
        check_same_settings(file.records, plan.checkpoints, plan.settings)
        backend = make_backend(arguments.backend, resources(arguments))
        stopped = False
        with (
            show_episodes(plan, file.records, console) as show,
            closing(sweep(plan, file, backend, load, stop_requested)) as records,
        ):
            try:
                for record in records:
                    show(record)
            except KeyboardInterrupt:  # the second one
                stopped = True
        return report(plan, file, stopped or stop_requested(), console)


def make_plan(arguments: Arguments, checkpoints: Mapping[str, str]) -> Plan:
    check_samplers(arguments.samplers)
    if arguments.threads < 1:
        raise ConfigError(f"--threads is {arguments.threads}; expected 1 or more.")
    check_threads(arguments.threads)
    seeds, repeats = parse_seed_set(arguments.seeds)
    repeats = repeats if arguments.repeats is None else arguments.repeats
    settings = run_settings(
        arguments.device, arguments.threads, arguments.batch, arguments.success, arguments.max_steps
    )
    return Plan(checkpoints, arguments.samplers, seeds, repeats, settings)


def resources(arguments: Arguments) -> Resources:
    gpu = arguments.device.startswith("cuda")
    return Resources(arguments.workers, arguments.threads, arguments.address, gpu)


def report(plan: Plan, file: ResultsFile, stopped: bool, console: Console) -> int:
    """Print how much of the plan the file holds. Returns the exit status."""
    missing, planned = plan.missing(file.records), set(plan.keys)
    errors = [record for record in file.records if record.error is not None and record.key in planned]
    print_errors(errors, console)
    console.print(
        f"{file.path}: {len(planned) - len(missing)} of {len(planned)} episodes, {len(errors)} with errors.",
        soft_wrap=True,
    )
    if missing and stopped:
        console.print("Interrupted; the same command continues.", style="yellow")
        return INTERRUPTED
    if missing:
        console.print(f"{len(missing)} episodes lost their worker each time; the same command tries them again.")
    return INCOMPLETE if missing or errors else COMPLETE


def dry_run(plan: Plan, load: TaskLoader, arguments: Arguments, console: Console) -> int:
    """Print the plan and its estimated duration, measured on this machine with one worker."""
    records = read_records([arguments.out]) if arguments.out.exists() else []
    table = Table("task", "sampler", "on file", "to run", "s a step", "steps", "hours", box=box.SIMPLE_HEAD)
    estimates = list(estimate(plan, records, load, arguments.batch))
    for it in estimates:
        steps = f"{'<= ' if it.at_most else ''}{it.steps:.0f}"
        table.add_row(
            it.task, it.sampler, str(it.on_file), str(it.to_run), f"{it.seconds:.3f}", steps, f"{it.hours:.2f}"
        )
    console.print(table)
    local = {"serial": 1, "ray": "the cluster's workers"}
    workers = local.get(arguments.backend, resources(arguments).local_workers)
    console.print(
        f"{sum(it.to_run for it in estimates)} of {len(plan.keys)} episodes to run: "
        f"{sum(it.hours for it in estimates):.2f} hours of one worker. Divide by {workers} "
        f"if each has cores of its own. Seconds: measured now, in {MEASURED_STEPS} steps of each sampler. Steps: the "
        "mean of the episodes on file, or at most the time limit.",
        highlight=False,
        soft_wrap=True,
    )
    return COMPLETE
