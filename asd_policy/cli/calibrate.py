"""Choose the windows of window=auto for a checkpoint on this machine, or fit its first guess; save them beside it.

    asd-policy calibrate square
    asd-policy calibrate square --sampler asd:path:auto:cuda_graph --device cuda
    asd-policy calibrate checkpoints/mine --data user/my_robot
    asd-policy calibrate square --guess
    asd-policy calibrate square --guess --data data/square.zarr

Observations are recorded along episodes of the checkpoint's environment, or taken from demonstrations. The windows are
valid only for the weights, batch size, device, number of threads, draft and capture of the measurement. The first guess
is valid for the weights, on every device.
"""

from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from torch import Tensor

from asd_policy import load_policy
from asd_policy.benchmarks.calibration import stretches, table
from asd_policy.benchmarks.observations import record_conditions, record_histories
from asd_policy.cli import COMPLETE
from asd_policy.cli.progress import Progress, counter, progress
from asd_policy.cli.tasks import run_settings, task_env
from asd_policy.core import Asd, parse_sampler
from asd_policy.errors import ConfigError
from asd_policy.evaluation.environments import import_modules
from asd_policy.importers.checkpoint import guess_file, windows_file
from asd_policy.importers.shipped import find_checkpoint
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.guess import MIN_CONDITIONS, fit_guess
from asd_policy.policies.guess_file import save_guess
from asd_policy.policies.guess_targets import drawn_chunks
from asd_policy.policies.observations import Observation
from asd_policy.threads import check_threads
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.first_guess import conditions

OBSERVATIONS, GUESS_OBSERVATIONS = 32, 10_000
"""How many observations are recorded by default, for windows and for a first guess."""


@dataclass(frozen=True)
class Arguments:
    """What to calibrate, and how."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder with config.json and model.safetensors, or a Hugging Face hub id. The windows or the first guess are saved
    in the folder, or in the cache of the hub."""
    guess: bool = False
    """Fit the first guess, and leave the windows as they are."""
    data: Path | None = None
    """Demonstrations to take the observations from, in any format of `asd-policy train`, for a robot without a
    simulator. By default they are recorded."""
    sampler: str = "asd:path:auto"
    """The sampler of the windows, as asd:DRAFT:auto[:CAPTURE]."""
    observations: int | None = None
    """Observations to record or take: by default 32 for windows, whose acceptance is measured on one chunk each, and
    10000 for a guess."""
    seed: int = 200000
    """Seed of the first episode along which observations are recorded, and of the fit of a guess."""
    batch_size: int = 1
    """Environments that will run together."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""
    modules: tuple[str, ...] = ()
    """Modules to import first, which register environments, drafts or networks, such as gym_pusht."""


def main(arguments: Arguments) -> int:
    """Record observations, calibrate, and print the windows."""
    console = Console()
    check_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    import_modules(arguments.modules)
    if arguments.guess:
        return calibrate_guess(arguments, console)
    spec = parse_sampler(arguments.sampler)
    if not (isinstance(spec, Asd) and spec.is_automatic):
        raise ConfigError(
            f"--sampler is {arguments.sampler}; expected asd:DRAFT:auto[:CAPTURE]: no other has windows to choose."
        )
    count = OBSERVATIONS if arguments.observations is None else arguments.observations
    if not 1 <= arguments.batch_size <= count:
        raise ConfigError(
            f"Got --batch-size {arguments.batch_size} and --observations {count}; expected at least "
            "1, and no fewer observations than the batch size."
        )
    checkpoint = find_checkpoint(arguments.checkpoint)
    recording = load_policy(checkpoint, device=arguments.device, draft="path", window=None)
    policy = recording.with_sampler(spec)
    observations = observations_of(arguments, recording, count, console)
    with console.status(f"calibrating {arguments.sampler}"):
        calibration = policy.calibrate(observations, arguments.batch_size)
    console.print(table(calibration))
    console.print(f"windows by denoising step (0 is the noisiest): {stretches(calibration.windows)}", soft_wrap=True)
    console.print(f"Kept in {windows_file(checkpoint)}", soft_wrap=True)
    return COMPLETE


def observations_of(arguments: Arguments, policy: DiffusionPolicy, count: int, console: Console) -> list[Observation]:
    """Observations recorded along episodes, or taken from demonstrations."""
    if arguments.data is not None:
        demonstrations = Demonstrations.read(arguments.data, obs_keys=tuple(policy.config.obs_keys))
        return list(demonstrations.observations(count))
    settings = run_settings(arguments.device, arguments.threads)
    with progress(console) as shown, closing(task_env(policy.config, settings, modules=arguments.modules)()) as env:
        recorded = counter(shown, "recording observations", count)
        return record_histories(policy, env, count, arguments.seed, recorded).latest


def calibrate_guess(arguments: Arguments, console: Console) -> int:
    """Fit the first guess to the policy's own chunks, and write it beside the checkpoint."""
    count = GUESS_OBSERVATIONS if arguments.observations is None else arguments.observations
    if count < MIN_CONDITIONS:
        raise ConfigError(f"--observations is {count}; expected at least {MIN_CONDITIONS}, to fit a first guess to.")
    checkpoint = find_checkpoint(arguments.checkpoint)
    policy = load_policy(checkpoint, "ddim", arguments.device, guess=False)
    with progress(console) as shown:
        cond = observed(policy, arguments, count, shown)
        row = shown.add("drawing chunks", len(cond))
        chunks = drawn_chunks(policy, cond, arguments.seed, lambda done: shown.update(row, done))
    with console.status("fitting the first guess"):
        guess = fit_guess(cond, chunks, arguments.seed)
    path = guess_file(checkpoint)
    save_guess(path, guess, policy.network, len(cond))
    spread = (chunks.cpu() - chunks.cpu().mean(dim=0)).square().mean().sqrt().item()
    error = (guess(cond.cpu()) - chunks.cpu()).square().mean().sqrt().item()
    console.print(f"{len(cond)} chunks vary by {spread:.3f} (standard deviation of an action, normalised).")
    console.print(f"Around the guess they vary by {error:.3f}.")
    console.print(f"Kept in {path}", soft_wrap=True)
    return COMPLETE


def observed(policy: DiffusionPolicy, arguments: Arguments, count: int, shown: Progress) -> Tensor:
    """Conditions (N, D) along episodes (N = count), or of demonstrations (N at most count)."""
    if arguments.data is not None:
        config = policy.config
        demonstrations = Demonstrations.read(arguments.data, obs_keys=tuple(config.obs_keys)).as_seen_by(config)
        demonstrations.check_fit(config)
        windows = demonstrations.windows(config, deepcopy(policy.normalizer).cpu()).to(policy.device)
        return conditions(config, windows, policy.normalizer, policy.encoders, count)[0]
    settings = run_settings(arguments.device, arguments.threads)
    with closing(task_env(policy.config, settings, modules=arguments.modules)()) as env:
        recorded = counter(shown, "recording observations", count)
        return record_conditions(policy, env, count, arguments.seed, recorded)
