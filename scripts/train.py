"""Train a diffusion policy on a store of demonstrations, or go on with a run that was stopped.

Examples:

    python scripts/train.py new --data data/square.zarr --out runs/square --steps 40000
    python scripts/train.py new --data data/square.zarr --out runs/tuned --init checkpoints/square --steps 10000
    python scripts/train.py new --data low_dim_v15.hdf5 --filter-key train --out runs/human --steps 40000
    python scripts/train.py resume --out runs/square
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from rich.console import Console
from rich.markup import escape
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asd_policy import load_policy
from asd_policy.errors import AsdPolicyError, CheckpointError, ConfigError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.threads import check_threads
from asd_policy.training.loop import Trainer, TrainSettings, policy_trainer
from asd_policy.training.progress import train_with_progress
from asd_policy.training.run import Demonstrations, Machine, RunInfo, check_new, make_run

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
    """Use the first so many episodes; all unless given."""
    held_out: int = 0
    """The last so many of these are not learned from: the averaged weights' loss on them is logged with each snapshot,
    and rises when the run memorises the others."""
    foreseeable: float | None = None
    """Leave out the windows in which more than this is added to an expert's action after what the policy sees, or the
    policy learns to answer pushes that do not come. For stores collected with --pushes or --closings; 0.2 lets white
    noise of 0.05 pass."""
    filter_key: str | None = None
    """Mask of the HDF5 file that names the demonstrations to train on, such as train."""
    absolute: bool = False
    """Learn target poses, which robomimic's files keep beside their delta actions."""
    clip_actions: bool = False
    """Clip delta actions that go beyond [-1, 1], with a note, instead of refusing them."""
    obs_keys: tuple[str, ...] = ()
    """Observations to learn from, in this order, such as agentview_image robot0_eef_pos; all images of all episodes
    are held in memory. By default a store's, and of an HDF5 file the vectors that robomimic's policies see."""
    ignore: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Entries of observations that the policy must not see: a key and its indices."""
    quaternions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Quaternions in observations whose sign flips: a key and the index of each one's first entry."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    octaves: int = 0
    """So many sines and cosines of each observed value accompany it, for tasks that hang on millimetres; 4 are a start.
    """
    init: Path | None = None
    """Checkpoint to start from: its weights, network and observations. Replaces --obs-keys, --ignore, --quaternions and
    --network; --octaves are added to a U-Net that has none."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


@dataclass(frozen=True)
class Resume:
    """Go on with a run from its last checkpoint."""

    out: Path
    """Run directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


class Prepared(NamedTuple):
    """A run that is ready to go on."""

    trainer: Trainer
    info: RunInfo
    windows: int
    notes: tuple[str, ...]


def prepare(command: New | Resume) -> Prepared:
    """The trainer of a new or a resumed run, with its directory made and its files written."""
    out, machine = command.out, command.machine
    last = out / "last.pt"
    networks: dict[str, Any] = {}
    if isinstance(command, New):
        info, config, normalizer, demonstrations, networks = begin(command)
    else:
        info, config = RunInfo.load(out / "train.json"), PolicyConfig.load(out / "config.json")
        normalizer = read_normalizer(out / NORMALIZER, config)
        demonstrations = info.read().as_seen_by(config)
        if not last.exists() and info.init is not None:  # it was killed before its first snapshot
            start = load_policy(info.init)
            if start.config.octaves != config.octaves:
                add_octaves(start, config.octaves)
            networks = networks_of(start)
    learned, unseen = demonstrations.split(info.held_out)
    windows = learned.windows(config, normalizer, info.foreseeable).to(machine.device)
    held_out = unseen.windows(config, normalizer, info.foreseeable).to(machine.device) if unseen else None
    trainer = policy_trainer(config, info.settings, windows, normalizer, machine.compile, held_out=held_out, **networks)
    if isinstance(command, New):
        make_run(out, lambda folder: write_run(folder, info, config, normalizer))
    elif last.exists():
        trainer.load(last)
    return Prepared(trainer, info, len(windows), demonstrations.notes)


def write_run(folder: Path, info: RunInfo, config: PolicyConfig, normalizer: LinearNormalizer) -> None:
    info.save(folder / "train.json")
    config.save(folder / "config.json")
    save_file(normalizer.state_dict(), folder / NORMALIZER)


def read_normalizer(path: Path, config: PolicyConfig) -> LinearNormalizer:
    normalizer = LinearNormalizer(config.normalizer_dims)
    try:
        normalizer.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the run's normalisation {path}: {error}") from error
    return normalizer


def begin(command: New) -> tuple[RunInfo, PolicyConfig, LinearNormalizer, Demonstrations, dict[str, Any]]:
    """Everything that decides the course of a new run; the networks are those of --init."""
    out, init = command.out, command.init
    check_new(out)
    start = load_policy(init) if init else None
    info = RunInfo(
        str(command.data),
        command.episodes,
        command.ignore,
        str(init) if init else None,
        command.settings,
        command.filter_key,
        command.absolute,
        command.obs_keys if start is None else tuple(start.config.obs_keys),
        command.held_out,
        command.foreseeable,
        command.clip_actions,
    )
    raw = info.read()
    if start is None:
        config = replace(raw.policy_config(command.network, command.quaternions), octaves=command.octaves)
    else:
        config = add_octaves(start, command.octaves) if command.octaves else start.config
    raw.check_fit(config)
    demonstrations = raw.as_seen_by(config)
    learned, _ = demonstrations.split(command.held_out)
    normalizer = learned.fit_normalizer(command.ignore) if start is None else start.normalizer
    info = replace(info, episodes=len(demonstrations.episode_ends), fingerprint=raw.fingerprint())
    return info, config, normalizer, demonstrations, {} if start is None else networks_of(start)


def add_octaves(start: DiffusionPolicy, octaves: int) -> PolicyConfig:
    """Let the network of a policy without octaves take some; it computes what it did until trained.

    Returns:
        The policy's configuration with them.

    Raises:
        ConfigError: if the policy has octaves already, or no U-Net.
    """
    if start.config.octaves or not isinstance(start.network, ConditionalUnet1D):
        raise ConfigError(
            f"Octaves can be added to a U-Net that has none; that of --init is a {type(start.network).__name__} with "
            f"{start.config.octaves}. Leave --octaves out to go on with those."
        )
    config = replace(start.config, octaves=octaves)
    start.network.widen(config.n_obs_steps, config.global_cond_dim // config.n_obs_steps)
    return config


def networks_of(start: DiffusionPolicy) -> dict[str, Any]:
    return {"network": start.network, "encoders": start.encoders}


def main(command: New | Resume) -> int:
    """Run the command; 0 when the run is over, 1 when it was stopped or failed."""
    console = Console()
    try:
        check_threads(command.machine.threads or 1)
        command.machine.set_threads()
        trainer, info, windows, notes = prepare(command)
        for note in notes:
            console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
        parameters = sum(p.numel() for p in trainer.net.parameters())
        console.print(
            f"{info.episodes} episodes ({info.held_out} held out), {windows} windows, "
            f"{parameters / 1e6:.1f}M parameters, from step {trainer.step} to {info.settings.steps}"
        )
        finished = train_with_progress(trainer, command.out, console)
    except AsdPolicyError as error:
        console.print(f"[red]{type(error).__name__}:[/red] {escape(str(error))}")
        return 1
    console.print("finished" if finished else f"stopped; go on with: train.py resume --out {command.out}")
    return 0 if finished else 1


if __name__ == "__main__":
    try:
        command = tyro.cli(New | Resume, description=__doc__)
    except AsdPolicyError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    raise SystemExit(main(command))
