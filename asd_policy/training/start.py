"""Starts and resumes a training run in its directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.nets import Architecture, CanWiden
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.first_guess import keep_first_guess
from asd_policy.training.loop import Trainer, policy_trainer
from asd_policy.training.processes import Processes
from asd_policy.training.run import Machine, RunInfo, check_new, make_run

NORMALIZER = "normalizer.safetensors"

LoadPolicy = Callable[[str], DiffusionPolicy]
"""Loads the checkpoint that a run starts from."""


class Prepared(NamedTuple):
    """A run that is ready to train."""

    trainer: Trainer
    info: RunInfo
    windows: int  # number of training windows
    notes: tuple[str, ...]  # warnings about the data
    keep_first_guess: Callable[[Path], Path]  # fits the first guess, after the last step; see `keep_first_guess`


class Networks(NamedTuple):
    """Initial networks; None for fresh weights."""

    network: nn.Module | None = None
    encoders: nn.ModuleDict | None = None


def begin(
    out: Path,
    info: RunInfo,
    machine: Machine,
    load_policy: LoadPolicy,
    network: Architecture,
    quaternions: Mapping[str, Sequence[int]],
    octaves: int = 0,
    processes: Processes | None = None,
) -> Prepared:
    """Make a new run's directory and its trainer. Of several processes the first one makes the directory.

    Args:
        out: the directory; it must not exist.
        info: the data and the settings. If `info.init` is given, the run starts from that checkpoint's weights,
            network, observations and normalisation, and `network` and `quaternions` are ignored.
        machine: where to train.
        load_policy: loads `info.init`.
        network: the configuration of the network.
        quaternions: quaternions in the observations whose sign is normalised: a key and the index of each one's first
            entry.
        octaves: number of sines and cosines of each observed value in the condition.
        processes: the processes that train together.

    Raises:
        ConfigError: if the directory exists, or data, network and checkpoint do not fit together.
        DataError: if the demonstrations cannot be used.
    """
    check_new(out)
    networks, start = Networks(), None
    if info.init is not None:
        start = load_policy(info.init)
        info = replace(info, obs_keys=tuple(start.config.obs_keys))
    raw = info.read()
    if start is None:
        config = replace(raw.policy_config(network, quaternions), octaves=octaves)
    else:
        config = add_octaves(start, octaves) if octaves else start.config
        networks = Networks(start.network, start.encoders)
    raw.check_fit(config)
    demonstrations = raw.as_seen_by(config)
    learned, _ = demonstrations.split(info.held_out)
    normalizer = learned.fit_normalizer(info.ignored) if start is None else start.normalizer
    info = replace(info, episodes=len(demonstrations.episode_ends), fingerprint=raw.fingerprint())
    processes = Processes() if processes is None else processes
    prepared = _prepared(info, config, normalizer, demonstrations, machine, networks, processes)
    processes.wait()  # every process has seen that the directory does not exist
    if processes.is_first:
        make_run(out, lambda folder: write_run(folder, info, config, normalizer))
    return prepared


def resume(out: Path, machine: Machine, load_policy: LoadPolicy, processes: Processes | None = None) -> Prepared:
    """The trainer of a run, at its last saved state, or at its beginning if it has saved none.

    Args:
        out: the run's directory.
        machine: where to train.
        load_policy: loads the checkpoint that the run started from, if the run has saved no state.
        processes: the processes that train together.

    Raises:
        CheckpointError: if a file of the run is missing or damaged.
        DataError: if the demonstrations are missing or have changed.
    """
    info, config = RunInfo.load(out / "train.json"), PolicyConfig.load(out / "config.json")
    normalizer = read_normalizer(out / NORMALIZER, config)
    demonstrations = info.read().as_seen_by(config)
    networks, last = Networks(), out / "last.pt"
    if info.init is not None and not last.exists():
        start = load_policy(info.init)
        if start.config.octaves != config.octaves:
            add_octaves(start, config.octaves)
        networks = Networks(start.network, start.encoders)
    processes = Processes() if processes is None else processes
    prepared = _prepared(info, config, normalizer, demonstrations, machine, networks, processes)
    if last.exists():
        prepared.trainer.load(last)
    return prepared


def add_octaves(start: DiffusionPolicy, octaves: int) -> PolicyConfig:
    """Widen the network of a policy without octaves, in place. Its outputs are unchanged until it is trained.

    Returns:
        The policy's configuration with octaves.

    Raises:
        ConfigError: if the policy has octaves already, or its network cannot be widened.
    """
    if start.config.octaves or not isinstance(start.network, CanWiden):
        raise ConfigError(
            f"The checkpoint to start from has a {type(start.network).__name__} with {start.config.octaves} octaves; "
            "octaves can be added to a network that can be widened (the U-Net) and has none. Leave --octaves out."
        )
    config = replace(start.config, octaves=octaves)
    start.network.widen(config.n_obs_steps, config.global_cond_dim // config.n_obs_steps)
    return config


def write_run(folder: Path, info: RunInfo, config: PolicyConfig, normalizer: LinearNormalizer) -> None:
    """Write a run's initial files."""
    info.save(folder / "train.json")
    config.save(folder / "config.json")
    save_file(normalizer.state_dict(), folder / NORMALIZER)


def read_normalizer(path: Path, config: PolicyConfig) -> LinearNormalizer:
    """A run's normalizer. Raises CheckpointError if the file cannot be read or does not fit the policy."""
    normalizer = LinearNormalizer(config.normalizer_dims)
    try:
        normalizer.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the run's normalisation {path}: {error}") from error
    return normalizer


def _prepared(
    info: RunInfo,
    config: PolicyConfig,
    normalizer: LinearNormalizer,
    demonstrations: Demonstrations,
    machine: Machine,
    networks: Networks,
    processes: Processes,
) -> Prepared:
    learned, unseen = demonstrations.split(info.held_out)
    windows = learned.windows(config, normalizer, info.foreseeable).to(machine.device)
    held_out = unseen.windows(config, normalizer, info.foreseeable).to(machine.device) if unseen else None
    trainer = policy_trainer(
        config,
        info.settings,
        windows,
        normalizer,
        machine.compile,
        networks.network,
        networks.encoders,
        held_out,
        processes,
        machine.accumulate,
    )
    keep = partial(keep_first_guess, trainer, config, windows, normalizer)
    return Prepared(trainer, info, len(windows), demonstrations.notes, keep)
