"""Choose the windows of window=auto for a checkpoint on this machine, and save them beside it.

    asd-policy calibrate square
    asd-policy calibrate square --sampler asd:path:auto:cuda_graph --device cuda
    asd-policy calibrate checkpoints/mine --data user/my_robot

Observations are recorded along episodes of the checkpoint's environment, or taken from demonstrations. The windows are
valid only for the weights, batch size, device, number of threads, draft and capture of the measurement.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console

from asd_policy import load_policy
from asd_policy.benchmarks.calibration import stretches, table
from asd_policy.benchmarks.observations import record_histories
from asd_policy.cli import COMPLETE
from asd_policy.cli.progress import counter, progress
from asd_policy.cli.tasks import run_settings, task_env
from asd_policy.core import Asd, parse_sampler
from asd_policy.errors import ConfigError
from asd_policy.evaluation.environments import import_modules
from asd_policy.importers.checkpoint import windows_file
from asd_policy.importers.shipped import find_checkpoint
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.observations import Observation
from asd_policy.threads import check_threads
from asd_policy.training.demonstrations import Demonstrations


@dataclass(frozen=True)
class Arguments:
    """The sampler to calibrate, and how."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder with config.json and model.safetensors, or a Hugging Face hub id. The windows are saved in the folder, or
    in the cache of the hub."""
    sampler: str = "asd:path:auto"
    """The sampler of the windows, as asd:DRAFT:auto[:CAPTURE]."""
    data: Path | None = None
    """Demonstrations to take the observations from, in any format of `asd-policy train`, for a robot without a
    simulator. By default they are recorded."""
    observations: int = 32
    """Observations to record or take. Acceptance is measured on one chunk for each."""
    seed: int = 200000
    """Seed of the first episode along which observations are recorded. Not used with --data."""
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
    spec = parse_sampler(arguments.sampler)
    if not (isinstance(spec, Asd) and spec.is_automatic):
        raise ConfigError(
            f"--sampler is {arguments.sampler}; expected asd:DRAFT:auto[:CAPTURE]: no other has windows to choose."
        )
    if not 1 <= arguments.batch_size <= arguments.observations:
        raise ConfigError(
            f"Got --batch-size {arguments.batch_size} and --observations {arguments.observations}; expected at least "
            "1, and no fewer observations than the batch size."
        )
    checkpoint = find_checkpoint(arguments.checkpoint)
    recording = load_policy(checkpoint, device=arguments.device, draft="path", window=None)
    policy = recording.with_sampler(spec)
    observations = _observations(arguments, recording, console)
    with console.status(f"calibrating {arguments.sampler}"):
        calibration = policy.calibrate(observations, arguments.batch_size)
    console.print(table(calibration))
    console.print(f"windows by denoising step (0 is the noisiest): {stretches(calibration.windows)}", soft_wrap=True)
    console.print(f"Kept in {windows_file(checkpoint)}", soft_wrap=True)
    return COMPLETE


def _observations(arguments: Arguments, policy: DiffusionPolicy, console: Console) -> list[Observation]:
    """Observations recorded along episodes, or taken from demonstrations."""
    if arguments.data is not None:
        demonstrations = Demonstrations.read(arguments.data, obs_keys=tuple(policy.config.obs_keys))
        return list(demonstrations.observations(arguments.observations))
    settings = run_settings(arguments.device, arguments.threads)
    with progress(console) as shown, closing(task_env(policy.config, settings, modules=arguments.modules)()) as env:
        recorded = counter(shown, "recording observations", arguments.observations)
        return record_histories(policy, env, arguments.observations, arguments.seed, recorded).latest
