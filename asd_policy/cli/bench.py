"""Time the samplers of a policy, eager and compiled, and diffusers' loop around the same network.

    asd-policy bench --checkpoint square --out results/latency

All samplers are timed in turn, with the same weights, on the same observations, which are recorded along episodes of
the task. Writes results.json and latency.png.
"""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from asd_policy import load_policy
from asd_policy.benchmarks import latency
from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.benchmarks.latency_report import BASELINE, plot, table
from asd_policy.benchmarks.observations import Histories, record_histories
from asd_policy.cli.progress import Progress, counter, progress
from asd_policy.cli.tasks import run_settings, task_env
from asd_policy.core import Asd, AsdSampler, Sampler
from asd_policy.errors import ConfigError
from asd_policy.evaluation.environments import import_modules
from asd_policy.evaluation.provenance import software
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.threads import check_threads

CALIBRATION_OBSERVATIONS = 32


@dataclass(frozen=True)
class Arguments:
    """The samplers to time, and how."""

    checkpoint: Path
    """Folder with config.json and model.safetensors, another library's file, or a Hugging Face hub id."""
    samplers: tuple[str, ...] = (
        *("ddpm", "ddpm:compile", "ddim:10", "ddim:10:compile"),
        *(f"asd:{draft}:24{capture}" for draft in ("frozen", "reuse", "path") for capture in ("", ":compile")),
        *("asd:path:8", "asd:path:16", "asd:path:16:compile", "asd:path:all", "asd:path:auto"),
    )
    """ddpm[:CAPTURE], ddim[:STEPS[:CAPTURE]], asd[:DRAFT[:WINDOW[:CAPTURE]]]; WINDOW is a number, "all" or "auto"."""
    conditions: int = 100
    """Observations to time each sampler on."""
    seed: int = 200000
    """Seed of the first episode along which observations are recorded."""
    steps: tuple[int, ...] = (25, 50, 100, 200, 1000)
    """Numbers of denoising steps for which rounds are counted, on a few observations."""
    out: Path = Path("results/latency")
    """Folder for results.json and latency.png."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register environments, drafts or networks, such as gym_pusht."""


def main(arguments: Arguments) -> int:
    """Time the samplers, print the table, and write the files."""
    console = Console()
    check_threads(arguments.threads)
    if arguments.conditions < 1 or any(steps < 1 for steps in arguments.steps):
        raise ConfigError(
            f"Got --conditions {arguments.conditions} and --steps {arguments.steps}; expected at least 1 of each."
        )
    torch.set_num_threads(arguments.threads)
    import_modules(arguments.modules)
    policy = load_policy(arguments.checkpoint, device=arguments.device, draft="path", window=None)
    policies = {label: policy.with_sampler(label) for label in arguments.samplers}
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = run_settings(arguments.device, arguments.threads)
    with progress(console) as shown, closing(task_env(policy.config, settings, modules=arguments.modules)()) as env:
        recorded = counter(shown, "recording observations", arguments.conditions)
        histories = record_histories(policy, env, arguments.conditions, arguments.seed, recorded)
    calibrate(policies, histories, console)
    conds = [policy.condition(history) for history in histories.observations]
    assert isinstance(policy.sampler, AsdSampler)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "device": arguments.device,
        "software": software(),
        "conditions": len(conds),
        "warm_rounds": histories.warm_rounds,
        "buffer_bytes": latency.buffer_bytes(policy.sampler, conds[0]),
    }
    with progress(console) as shown:
        timings = measure(policy, policies, conds, shown)
    save(result, arguments.out, timings=[asdict(timing) for timing in timings])
    console.print(table(timings))
    console.print(f"asd:path:all, warm-started along whole episodes: {histories.warm_rounds:.2f} rounds a chunk")
    console.print(f"memory of its buffers at batch size 1: {result['buffer_bytes'] / 1024:.0f} KiB")
    with progress(console) as shown:
        done = counter(shown, "counting rounds against steps", len(latency.GROWTH_DRAFTS) * len(arguments.steps))
        growth = latency.rounds_against_steps(policy, arguments.steps, conds, done)
    save(result, arguments.out, rounds_against_steps=growth)
    for draft, rounds in growth.items():
        console.print(f"rounds of {draft} at K = " + ", ".join(f"{k}: {r:.1f}" for k, r in rounds.items()))
    plot(timings, growth, arguments.out / "latency.png")
    console.print(f"Wrote {arguments.out}/results.json and latency.png")
    return 0


def calibrate(policies: dict[str, DiffusionPolicy], histories: Histories, console: Console) -> None:
    """Choose the windows of every sampler with window=auto, and save them beside the checkpoint."""
    some = histories.latest[:: max(1, len(histories.latest) // CALIBRATION_OBSERVATIONS)]
    for label, policy in policies.items():
        if isinstance(policy.spec, Asd) and policy.spec.is_automatic:
            with console.status(f"calibrating {label}"):
                calibration = policy.calibrate(some)
            console.print(f"{label}: windows {sorted(set(calibration.windows))}")


def measure(
    policy: DiffusionPolicy, policies: dict[str, DiffusionPolicy], conds: list[torch.Tensor], shown: Progress
) -> list[latency.Timing]:
    """Time every sampler, then profile a round of each."""
    loop = DiffusersLoop(policy)
    samplers: dict[str, Sampler] = {BASELINE: loop, **{label: own.sampler for label, own in policies.items()}}
    draws = {BASELINE: latency.loop_draw(loop)}
    draws |= {label: latency.sampler_draw(own) for label, own in policies.items()}
    timings = latency.time_in_turn(draws, conds, counter(shown, "timing", len(draws) * (1 + len(conds))))
    done, found = counter(shown, "profiling", len(draws)), []
    for timing in timings:
        label = timing.sampler
        found.append(latency.with_round_cost(timing, samplers[label], draws[label], conds))
        done()
    return found


def save(result: dict[str, Any], out: Path, **more: Any) -> None:
    """Add to the result, and write all of it."""
    result |= more
    (out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
