"""Evaluate one policy with several samplers on the same seeds: success, latency, network calls, a video of each.

python scripts/evaluate.py --checkpoint checkpoints/square --samplers ddpm asd:reuse:24 --seeds 100000-100049
"""

import json
import sys
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import gymnasium
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asd_policy import AsdPolicyError, DiffusionPolicy, load_policy
from asd_policy.core import parse_sampler
from asd_policy.errors import DataError
from asd_policy.evaluation.backends import check_counts
from asd_policy.evaluation.evaluate import evaluate, noise_seed, parse_seeds
from asd_policy.evaluation.provenance import software
from asd_policy.evaluation.rollout import Episode
from asd_policy.evaluation.summary import plot_acceptance, summarize, table
from asd_policy.evaluation.videos import write_video
from asd_policy.importers.checkpoint import fingerprint
from asd_policy.interrupt import stop_requests
from asd_policy.threads import check_threads


@dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    checkpoint: Path
    """Folder with config.json and model.safetensors, or another library's file."""
    samplers: tuple[str, ...] = ("ddpm", "ddim:10", "asd:frozen:24", "asd:reuse:16", "asd:path:16")
    """ddpm[:CAPTURE], ddim[:STEPS], asd[:DRAFT[:WINDOW[:CAPTURE]]]; WINDOW is a number or "all"."""
    seeds: str = "100000-100002"
    """Environment seeds, such as 100000-100049 or 1,5,7."""
    repeat: int = 0
    """Which noise the policy gets: another number, other noise on the same environment seeds."""
    out: Path = Path("results/evaluation")
    """Folder for episodes.jsonl, results.json, acceptance.png and the videos. An earlier run there is kept,
    and a number is added to the name."""
    overwrite: bool = False
    """Replace what an earlier run has left in the folder."""
    video: bool = True
    """Record the first seed's episode of each sampler, as an mp4."""
    device: str = "cpu"
    threads: int = 1
    """torch's threads on the CPU. Two that share a busy core wait for each other: slower than one by far."""


def main(arguments: Arguments) -> int:
    console = Console()
    check_counts(1, arguments.threads)
    check_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    noise_seed(0, arguments.repeat)  # or it says what is wrong with it
    seeds = parse_seeds(arguments.seeds)
    for text in arguments.samplers:
        parse_sampler(text)  # refuses now what is no sampler
    policy = load_policy(arguments.checkpoint, device=arguments.device)
    policies = {label: policy.with_sampler(label) for label in arguments.samplers}
    for label, own in policies.items():
        if own.needs_warm_up:
            with console.status(f"capturing {label}: tens of seconds, or a few where torch's cache has it"):
                own.warm_up()
    env = gymnasium.make(f"envs:{policy.config.env_id}", **policy.config.env_options)
    out = choose_folder(arguments.out, arguments.overwrite)
    if out != arguments.out:
        console.print(f"{arguments.out} holds an earlier run, which is kept: writing to {out}.", soft_wrap=True)
        arguments = replace(arguments, out=out)
    results: dict[str, list[Episode]] = {label: [] for label in policies}
    try:
        stopped = run_episodes(env, policies, seeds, arguments, results, console)
    except KeyboardInterrupt:  # the second one
        stopped = True
    report(arguments, results, console)
    if stopped:
        console.print("Interrupted: the results hold the episodes that were finished.", style="yellow")
        return 130
    env.close()
    if arguments.video:
        record_videos(policy, results, arguments.out, console)
    return 1 if any(episode.error for episodes in results.values() for episode in episodes) else 0


def choose_folder(out: Path, overwrite: bool) -> Path:
    """The folder itself, made if need be; or with a number, if it holds an earlier run that is not to be overwritten.

    Raises:
        DataError: if it cannot be written.
    """
    for number in count(1):
        folder = out if number == 1 else Path(f"{out}-{number}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "episodes.jsonl").open("w" if overwrite else "x").close()
        except FileExistsError as error:
            if not folder.is_dir():
                raise DataError(f"Cannot write to the folder {folder}: it is a file.") from error
        except OSError as error:
            raise DataError(f"Cannot write to the folder {folder}: {error.strerror}.") from error
        else:
            break
    return folder


def run_episodes(
    env: gymnasium.Env,
    policies: dict[str, DiffusionPolicy],
    seeds: list[int],
    arguments: Arguments,
    results: dict[str, list[Episode]],
    console: Console,
) -> bool:
    """Fill `results` and episodes.jsonl, where whatever happens no finished episode is lost.

    Ctrl-C stops after the episode in hand, a second one at once. Returns whether it was stopped.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    record = arguments.out / "episodes.jsonl"
    with (
        stop_requests() as stop_requested,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("", total=len(seeds) * len(policies))

        def started(label: str, seed: int) -> None:
            progress.update(bar, description=f"seed {seed} {label}")

        for label, episode in evaluate(env, policies, seeds, arguments.repeat, started):
            results[label].append(episode)
            if episode.error is not None:
                console.print(f"{label}, seed {episode.env_seed}: {episode.error}", style="red", markup=False)
            append(record, label, episode)
            progress.advance(bar)
            if stop_requested():
                return True
    return False


def append(path: Path, label: str, episode: Episode) -> None:
    """Add an episode's line to the file.

    Raises:
        DataError: if it cannot be written, naming the episode.
    """
    try:
        with path.open("a") as file:
            print(json.dumps({"sampler": label, **episode.to_json(), "error": episode.error}), file=file)
    except OSError as error:
        raise DataError(
            f"Cannot write to {path}: {error.strerror}. {label} on seed {episode.env_seed} is not recorded, and what "
            "follows it was not run."
        ) from error


def report(arguments: Arguments, results: dict[str, list[Episode]], console: Console) -> None:
    """Write results.json and acceptance.png, and print the table."""
    provenance = {
        "checkpoint": str(arguments.checkpoint),
        "checkpoint_sha256": fingerprint(arguments.checkpoint),
        "seeds": arguments.seeds,
        "repeat": arguments.repeat,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "software": software(),
    }
    rows = summarize(results)
    summary = {"provenance": provenance, "summary": [asdict(row) for row in rows]}
    (arguments.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot_acceptance(results, arguments.out / "acceptance.png")
    console.print(table(rows))
    console.print(f"Wrote {arguments.out}/results.json, episodes.jsonl and acceptance.png")


def record_videos(policy: DiffusionPolicy, results: dict[str, list[Episode]], out: Path, console: Console) -> None:
    """An mp4 of each sampler's first episode, replayed from its seed and actions if this machine renders."""
    from envs.graphics import RenderingError  # here: it loads the simulator

    try:
        env = gymnasium.make(f"envs:{policy.config.env_id}", render_mode="rgb_array", **policy.config.env_options)
        env.reset()
    except RenderingError as error:
        console.print(f"No films: {error}", style="yellow", soft_wrap=True, markup=False)
        return
    with console.status("Rendering videos") as status:
        for label, (first, *_) in results.items():
            if first.error is not None:
                continue
            status.update(f"Rendering {label}")
            path = out / f"{label.replace(':', '-')}-seed{first.env_seed}.mp4"
            write_video(env, first.env_seed, first.actions, path)
            console.print(f"Wrote {path}")
    env.close()


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except (AsdPolicyError, gymnasium.error.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
