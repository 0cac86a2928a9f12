"""Train a diffusion policy on a store of demonstrations, or go on with a run that was stopped.

Examples:

    python scripts/train.py new --data data/square.zarr --out runs/square --steps 40000
    python scripts/train.py new --data data/square.zarr --out runs/tuned --init checkpoints/square --steps 10000
    python scripts/train.py new --data low_dim_v15.hdf5 --filter-key train --out runs/human --steps 40000
    python scripts/train.py resume --out runs/square
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from asd_policy import load_policy
from asd_policy.errors import AsdPolicyError, ConfigError
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.loop import Trainer, TrainSettings, policy_trainer
from asd_policy.training.progress import train_with_progress
from asd_policy.training.run import Demonstrations, Machine, RunInfo

NORMALIZER = "normalizer.safetensors"


@dataclass(frozen=True)
class New:
    """Start a run in a new directory."""

    data: Path
    """Store of demonstrations, or a robomimic HDF5 file."""
    out: Path
    """Run directory to make."""
    settings: Annotated[TrainSettings, tyro.conf.arg(name="")]
    episodes: int | None = None
    """Train on the first so many episodes; all unless given."""
    filter_key: str | None = None
    """Mask of the HDF5 file that names the demonstrations to train on, such as train."""
    absolute: bool = False
    """Learn target poses, which robomimic's files keep beside their delta actions."""
    ignore: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Entries of observations that the policy must not see: a key and its indices."""
    quaternions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Quaternions in observations whose sign flips: a key and the index of each one's first entry."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    init: Path | None = None
    """Checkpoint to start from: its weights, network and treatment of observations. Replaces --ignore, --quaternions
    and --network."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its last checkpoint."""

    out: Path
    """Run directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


def prepare(command: New | Resume) -> tuple[Trainer, RunInfo, int]:
    """The trainer of a new or a resumed run, with its directory made and its files written; and how many windows."""
    out, machine = command.out, command.machine
    network = None
    if isinstance(command, New):
        info, config, normalizer, demonstrations, network = begin(command)
    else:
        info, config = RunInfo.load(out / "train.json"), PolicyConfig.load(out / "config.json")
        normalizer = LinearNormalizer({**config.obs_keys, "action": config.action_dim})
        normalizer.load_state_dict(load_file(out / NORMALIZER))
        demonstrations = Demonstrations.read(info.data, info.episodes, info.filter_key, info.absolute)
        demonstrations = demonstrations.as_seen_by(config)
    windows = demonstrations.windows(config, normalizer).to(machine.device)
    trainer = policy_trainer(config, info.settings, windows, normalizer, machine.compile, network)
    if isinstance(command, Resume):
        trainer.load(out / "last.pt")
    return trainer, info, len(windows)


def begin(command: New) -> tuple[RunInfo, PolicyConfig, LinearNormalizer, Demonstrations, nn.Module | None]:
    """Make the directory of a new run, with everything that decides its course; the network is that of --init."""
    out, init, network = command.out, command.init, None
    if out.exists():
        raise ConfigError(f"{out} exists already: resume it, or choose another directory.")
    demonstrations = Demonstrations.read(command.data, command.episodes, command.filter_key, command.absolute)
    if init is None:
        config = demonstrations.policy_config(command.network, command.quaternions)
        demonstrations = demonstrations.as_seen_by(config)
        normalizer = demonstrations.fit_normalizer(command.ignore)
    else:
        policy = load_policy(init)
        config, normalizer, network = policy.config, policy.normalizer, policy.network
        demonstrations.check_fit(config)
        demonstrations = demonstrations.as_seen_by(config)
    out.mkdir(parents=True)
    episodes = len(demonstrations.episode_ends)
    start = str(init) if init else None
    info = RunInfo(
        str(command.data), episodes, command.ignore, start, command.settings, command.filter_key, command.absolute
    )
    info.save(out / "train.json")
    config.save(out / "config.json")
    save_file(normalizer.state_dict(), out / NORMALIZER)
    return info, config, normalizer, demonstrations, network


def main(command: New | Resume) -> int:
    """Run the command; 0 when the run is over, 1 when it was stopped or failed."""
    console = Console()
    command.machine.set_threads()
    try:
        trainer, info, windows = prepare(command)
        parameters = sum(p.numel() for p in trainer.net.parameters())
        console.print(
            f"{info.episodes} episodes, {windows} windows, {parameters / 1e6:.1f}M parameters, "
            f"from step {trainer.step} to {info.settings.steps}"
        )
        finished = train_with_progress(trainer, command.out, console)
    except AsdPolicyError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {error}")
        return 1
    console.print("finished" if finished else f"stopped; go on with: train.py resume --out {command.out}")
    return 0 if finished else 1


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(New | Resume, description=__doc__)))
