"""Evaluate one policy with several samplers on the same seeds: success, latency, network calls, and videos.

    asd-policy evaluate --checkpoint square --samplers ddpm asd:reuse:24 --seeds 100000-100049

The episodes go to OUT/episodes.jsonl, the input of asd-policy report. Exit status: 0 complete, 1 complete with errors
in some episodes, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
from rich.console import Console

from asd_policy.cli import COMPLETE, INCOMPLETE, INTERRUPTED
from asd_policy.cli.episodes import print_errors, show_episodes
from asd_policy.cli.tasks import (
    TaskLoader,
    check_samplers,
    read_checkpoints,
    run_settings,
    task_env,
    uses_windows_file,
)
from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import Serial, check_counts
from asd_policy.evaluation.environments import import_modules
from asd_policy.evaluation.folders import EPISODES, choose_folder, write_summary
from asd_policy.evaluation.provenance import software
from asd_policy.evaluation.results import EpisodeKey, Record, ResultsFile
from asd_policy.evaluation.rollout import Episode
from asd_policy.evaluation.seeds import noise_seed, parse_seeds
from asd_policy.evaluation.summary import table
from asd_policy.evaluation.sweep import Plan, sweep
from asd_policy.evaluation.videos import write_video
from asd_policy.evaluation.worker import LoadedTask
from asd_policy.interrupt import stop_requests
from asd_policy.threads import check_threads


@dataclass(frozen=True)
class Arguments:
    """The policy to evaluate, and how."""

    checkpoint: Path
    """Folder with config.json and model.safetensors, another library's file, the name of a shipped checkpoint, or a
    Hugging Face hub id: user/name or user/name@revision."""
    samplers: tuple[str, ...] = ("ddpm", "ddim:10", "asd:frozen:24", "asd:reuse:16", "asd:path:16")
    """ddpm[:CAPTURE], ddim[:STEPS], asd[:DRAFT[:WINDOW[:CAPTURE]]]; WINDOW is a number or "all"."""
    seeds: str = "100000-100002"
    """Environment seeds, such as 100000-100049 or 1,5,7."""
    repeat: int = 0
    """The repeat's number, which chooses the policy's noise: another number gives other noise on the same seeds."""
    out: Path = Path("results/evaluation")
    """Folder for episodes.jsonl, results.json, acceptance.png and the videos. If it holds an earlier run, that is kept,
    and a number is appended to the folder's name."""
    overwrite: bool = False
    """Replace an earlier run in the folder."""
    video: bool = True
    """Record the first seed's episode of each sampler as an mp4 file."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""
    success: str | None = None
    """For environments from outside: the key of info that reports success, or "terminated" if every episode that
    terminates has succeeded. By default "success" or "is_success"."""
    max_steps: int | None = None
    """Time limit in control steps. By default the environment's."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register environments, drafts or networks, such as gym_pusht."""


def main(arguments: Arguments) -> int:
    from asd_policy.importers.shipped import find_checkpoint

    console = Console()
    arguments = replace(arguments, checkpoint=find_checkpoint(arguments.checkpoint))
    plan, load = prepare(arguments)
    [task] = plan.checkpoints
    loaded = load(task)
    policies: dict[str, Any] = {}
    for label in plan.samplers:
        with console.status(f"preparing {label}: tens of seconds if it compiles"):
            policies[label] = loaded.make_policy(label)
    made = [loaded.make_env()]  # before the folder is made: if this fails, no folder is left
    parts = LoadedTask(lambda: made.pop() if made else loaded.make_env(), policies.__getitem__)
    out = choose_folder(arguments.out, arguments.overwrite)
    if out != arguments.out:
        console.print(f"{arguments.out} holds an earlier run, which is kept: writing to {out}.", soft_wrap=True)
        arguments = replace(arguments, out=out)
    records, first, stopped = run_episodes(plan, parts, arguments.out / EPISODES, console)
    report(arguments, plan, records, console)
    if stopped:
        console.print("Interrupted: the results hold the finished episodes.", style="yellow")
        return INTERRUPTED
    if arguments.video:
        rendering = task_env(policies[plan.samplers[0]].config, plan.settings, True, arguments.modules)
        record_videos(rendering, first, arguments.out, console)
    return INCOMPLETE if any(record.error for record in records) else COMPLETE


def prepare(arguments: Arguments) -> tuple[Plan, TaskLoader]:
    """The plan and the loader, checked before anything is loaded or written."""
    check_counts(1, arguments.threads)
    check_threads(arguments.threads)
    noise_seed(0, arguments.repeat)  # raises on a negative number
    seeds = parse_seeds(arguments.seeds)
    import_modules(arguments.modules)
    check_samplers(arguments.samplers)
    if not arguments.samplers:
        raise ConfigError("There is no sampler to evaluate; name at least one.")
    settings = run_settings(
        arguments.device, arguments.threads, success=arguments.success, max_steps=arguments.max_steps
    )
    windows = uses_windows_file(arguments.samplers)
    checkpoints = read_checkpoints([arguments.checkpoint], windows, arguments.modules)
    hashes = {task: sha256 for task, (_, sha256) in checkpoints.items()}
    plan = Plan(hashes, arguments.samplers, seeds, 1, settings, first_repeat=arguments.repeat)
    return plan, TaskLoader(checkpoints, windows, settings, modules=arguments.modules)


def run_episodes(
    plan: Plan, parts: LoadedTask, path: Path, console: Console
) -> tuple[list[Record], dict[str, Episode], bool]:
    """Run the plan in this process. The first Ctrl-C finishes the running episode; a second one quits at once.

    Returns:
        the finished records; each sampler's episode on the first seed, with its actions; and whether it was stopped.
    """
    first: dict[str, Episode] = {}

    def observe(key: EpisodeKey, episode: Episode) -> None:
        if key.env_seed == plan.env_seeds[0]:
            first[key.sampler] = episode

    stopped = False
    with stop_requests() as stop_requested, ResultsFile(path) as file:
        with (
            show_episodes(plan, file.records, console) as show,
            closing(sweep(plan, file, Serial(), lambda task: parts, stop_requested, observe)) as records,
        ):
            try:
                for record in records:
                    show(record)
                    print_errors([record] if record.error is not None else [], console)
            except KeyboardInterrupt:  # the second one
                stopped = True
        return file.records, first, stopped or (stop_requested() and bool(plan.missing(file.records)))


def report(arguments: Arguments, plan: Plan, records: list[Record], console: Console) -> None:
    """Write results.json and acceptance.png, and print the table."""
    import torch

    from asd_policy.importers.checkpoint import fingerprint

    results = {label: [record for record in records if record.sampler == label] for label in plan.samplers}
    provenance = {
        "checkpoint": str(arguments.checkpoint),
        "checkpoint_sha256": fingerprint(arguments.checkpoint),
        "seeds": arguments.seeds,
        "repeat": arguments.repeat,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "software": software(),
    }
    console.print(table(write_summary(arguments.out, results, provenance)))
    console.print(f"Wrote {arguments.out}/results.json, {EPISODES} and acceptance.png")


def record_videos(
    make_env: Callable[[], gymnasium.Env[Any, Any]], episodes: dict[str, Episode], out: Path, console: Console
) -> None:
    """Write an mp4 file of each episode, replayed from its seed and actions, if this machine can render."""
    try:
        env = make_env()
        env.reset()
        env.render()
    except (ConfigError, gymnasium.error.DependencyNotInstalled) as error:
        console.print(f"No films: {error}", style="yellow", soft_wrap=True, markup=False)
        return
    with console.status("Rendering videos") as status, closing(env):
        for label, episode in episodes.items():
            if episode.error is not None:
                continue
            status.update(f"Rendering {label}")
            path = out / f"{label.replace(':', '-')}-seed{episode.env_seed}.mp4"
            write_video(env, episode.env_seed, episode.actions, path)
            console.print(f"Wrote {path}")
