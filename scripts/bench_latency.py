"""What a chunk costs: this package's samplers, eager and compiled, beside the loop that users of diffusers write.

All in one run, in turn, with the same weights and the same observations, recorded along episodes of the task:

    python scripts/bench_latency.py --checkpoint checkpoints/square --out results/latency
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from asd_policy import AsdPolicyError, load_policy
from asd_policy.benchmarks import latency
from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.benchmarks.latency import Timing
from asd_policy.core import Asd, AsdSampler, Sampler, SamplerSpec, parse_sampler
from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import check_counts
from asd_policy.evaluation.provenance import software
from asd_policy.policies.diffusion import DiffusionPolicy, Observation
from asd_policy.threads import check_threads

BASELINE = "diffusers loop"
CALIBRATION_OBSERVATIONS = 32


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    checkpoint: Path
    """Folder with config.json and model.safetensors."""
    samplers: tuple[str, ...] = (
        *("ddpm", "ddpm:compile", "ddim:10", "ddim:10:compile"),
        *(f"asd:{draft}:24{capture}" for draft in ("frozen", "reuse", "path") for capture in ("", ":compile")),
        *("asd:path:8", "asd:path:16", "asd:path:16:compile", "asd:path:all", "asd:path:auto"),
    )
    """As scripts/evaluate.py writes them."""
    conditions: int = 100
    """Observations to time each sampler on."""
    seed: int = 200000
    """First seed of the episodes that the observations are recorded in, by asd:path:all."""
    steps: tuple[int, ...] = (25, 50, 100, 200, 1000)
    """Numbers of denoising steps to count rounds at, on a few observations."""
    out: Path = Path("results/latency")
    """Folder for results.json and latency.png."""
    device: str = "cpu"
    threads: int = 1
    """torch's threads on the CPU. Two that share a busy core wait for each other: slower than one by far."""


def main(arguments: Arguments) -> None:
    console = Console()
    check_counts(1, arguments.threads)
    check_threads(arguments.threads)
    if arguments.conditions < 1 or any(steps < 1 for steps in arguments.steps):
        raise ConfigError(
            f"Got --conditions {arguments.conditions} and --steps {arguments.steps}; expected at least 1 of each."
        )
    torch.set_num_threads(arguments.threads)
    specs = {text: parse_sampler(text) for text in arguments.samplers}
    policy = load_policy(arguments.checkpoint, device=arguments.device, draft="path", window=None)
    policies = {label: policy.with_sampler(spec) for label, spec in specs.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)

    histories, warm_rounds = record(policy, arguments, console)
    calibrate(policies, specs, histories, console)
    conds = [policy.condition(history) for history in histories]
    assert isinstance(policy.sampler, AsdSampler)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "device": arguments.device,
        "software": software(),
        "conditions": len(conds),
        "warm_rounds": warm_rounds,
        "buffer_bytes": latency.buffer_bytes(policy.sampler, conds[0]),
    }
    timings = measure(policy, policies, conds, console)
    save(result, arguments.out, timings=[asdict(timing) for timing in timings])
    console.print(table(timings))
    console.print(f"asd:path:all started warm, along whole episodes: {warm_rounds:.2f} rounds a chunk")
    console.print(f"memory of a sampler's buffers, batch 1: {result['buffer_bytes'] / 1024:.0f} KiB")

    growth = rounds_against_steps(policy, arguments.steps, conds, console)
    save(result, arguments.out, rounds_against_steps=growth)
    for draft, rounds in growth.items():
        console.print(f"rounds of {draft} at K = " + ", ".join(f"{k}: {r:.1f}" for k, r in rounds.items()))
    plot(timings, growth, arguments.out / "latency.png")
    console.print(f"Wrote {arguments.out}/results.json and latency.png")


def save(result: dict[str, Any], out: Path, **more: Any) -> None:
    """Add to the result, and write what there is so far."""
    result |= more
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")


def bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def record(policy: DiffusionPolicy, arguments: Arguments, console: Console) -> tuple[list[list[Observation]], float]:
    """What chunks were sampled from along whole episodes, and the mean rounds of those that started warm."""
    env = gymnasium.make(f"envs:{policy.config.env_id}", **policy.config.env_options)
    histories: list[list[Observation]] = []
    warm: list[int] = []
    with bar(console) as progress:
        task = progress.add_task("recording observations", total=arguments.conditions)
        seed = arguments.seed
        while len(histories) < arguments.conditions:
            for turn, (history, rounds) in enumerate(latency.record_histories(policy, env, seed)):
                histories.append(history)
                warm += [rounds] if turn else []
                progress.update(task, completed=min(len(histories), arguments.conditions))
            seed += 1
    env.close()
    return histories[: arguments.conditions], sum(warm) / len(warm) if warm else float("nan")


def calibrate(
    policies: dict[str, DiffusionPolicy],
    specs: dict[str, SamplerSpec],
    histories: list[list[Observation]],
    console: Console,
) -> None:
    """Choose the windows of every sampler that asks for it, and keep them beside the checkpoint."""
    some = [history[-1] for history in histories[:: max(1, len(histories) // CALIBRATION_OBSERVATIONS)]]
    for label, spec in specs.items():
        if isinstance(spec, Asd) and spec.is_automatic:
            with console.status(f"calibrating {label}"):
                calibration = policies[label].calibrate(some)
            console.print(f"{label}: windows {sorted(set(calibration.windows))}")


def measure(
    policy: DiffusionPolicy, policies: dict[str, DiffusionPolicy], conds: list[torch.Tensor], console: Console
) -> list[Timing]:
    """Time every sampler, then count the operations of each one's rounds and take its network's share."""
    loop = DiffusersLoop(policy)
    samplers: dict[str, Sampler] = {BASELINE: loop, **{label: own.sampler for label, own in policies.items()}}
    draws = {BASELINE: latency.loop_draw(loop)}
    draws |= {label: latency.sampler_draw(own) for label, own in policies.items()}
    with bar(console) as progress:
        task = progress.add_task("timing", total=len(draws) * (1 + len(conds)))
        timings = latency.time_in_turn(draws, conds, lambda: progress.advance(task))
        task = progress.add_task("profiling", total=len(draws))
        found = []
        for timing in timings:
            label = timing.sampler
            found.append(latency.with_round_cost(timing, samplers[label], draws[label], conds))
            progress.advance(task)
    return found


def rounds_against_steps(
    policy: DiffusionPolicy, steps: tuple[int, ...], conds: list[torch.Tensor], console: Console
) -> dict[str, dict[int, float]]:
    """Rounds of a chunk for each draft and number of steps; fewer observations where there are many steps."""
    growth: dict[str, dict[int, float]] = {"frozen": {}, "path": {}}
    with bar(console) as progress:
        task = progress.add_task("rounds against steps", total=len(growth) * len(steps))
        for draft, rounds in growth.items():
            for num_steps in steps:
                few = torch.cat(conds[:: max(1, len(conds) * num_steps // 2000)])
                rounds[num_steps] = latency.rounds_at(policy, num_steps, draft, few)
                progress.advance(task)
    return growth


def table(timings: list[Timing]) -> Table:
    base = next(t for t in timings if t.sampler == BASELINE)
    caption = (
        f"ms, p95: a chunk, started cold. faster: against the {BASELINE}. ops: torch's operations in a round, on a GPU "
        "kernels. outside: those of them that are not the network's. network: its share of the time."
    )
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    result.add_column("sampler", no_wrap=True)
    for name in ("ms", "p95", "faster", "rounds", "states", "ops", "outside", "network"):
        result.add_column(name, justify="right", no_wrap=True)
    for t in timings:
        counts = (t.evaluations, t.operations, t.operations - t.network_operations)
        numbers = (f"{t.rounds:.1f}", *(f"{count:.0f}" for count in counts), f"{t.network_share:.0%}")
        shown = ("-" if "nan" in number else number for number in numbers)
        result.add_row(
            t.sampler, f"{t.median_ms:.0f}", f"{t.p95_ms:.0f}", f"{base.median_ms / t.median_ms:.1f}x", *shown
        )
    return result


def plot(timings: list[Timing], growth: dict[str, dict[int, float]], path: Path) -> None:
    """Latency against window, acceptance against step, rounds against the number of steps."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    latencies, acceptance, rounds = figure.subplots(1, 3)
    plot_latencies(timings, latencies)
    kept = {t.sampler.removesuffix(":compile"): t.acceptance for t in timings if any(t.acceptance)}
    for sampler, by_step in kept.items():
        if sampler.endswith(":24"):
            acceptance.plot(by_step[:-1], label=sampler)
    acceptance.set(xlabel="denoising step (0 is the noisiest)", ylabel="drafts kept", ylim=(0, 1.02))
    for draft, by_steps in growth.items():
        rounds.plot(list(by_steps), list(by_steps.values()), "o-", label=draft)
    rounds.set(xlabel="K, denoising steps", ylabel="rounds, window K", xscale="log", yscale="log")
    for axes in (latencies, acceptance, rounds):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_latencies(timings: list[Timing], axes: Axes) -> None:
    """A line for each draft and capture over its windows, and a level for each sampler without a window."""
    lines: dict[str, dict[int, float]] = {}
    for t in timings:
        name, *options = t.sampler.split(":")
        if name == "asd" and len(options) > 1 and options[1] != "auto":
            draft, window, *capture = options
            steps = len(t.acceptance) if window == "all" else int(window)
            lines.setdefault(" ".join((draft, *capture)), {})[steps] = t.median_ms
        else:
            axes.axhline(t.median_ms, linestyle=":", color="gray")
            axes.text(0.02, t.median_ms, t.sampler, fontsize="small", va="bottom", transform=axes.get_yaxis_transform())
    for label, by_window in lines.items():
        axes.plot(sorted(by_window), [by_window[window] for window in sorted(by_window)], "o-", label=label)
    axes.set(xlabel="window", ylabel="ms per chunk, median", xscale="log", yscale="log")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (AsdPolicyError, gymnasium.error.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
