"""The directory of a training run and its files.

The run's directory:

    config.json               the policy's configuration
    train.json                the data and the settings
    normalizer.safetensors    the normalisation of observations and actions
    last.pt                   state to resume from
    ema_<step>.safetensors    averaged weights; with config.json they are a policy
    guess.safetensors         the first guess of the last averaged weights
    log.jsonl, loss.png       the loss so far (`asd_policy.training.log`)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from asd_policy.checks import is_count
from asd_policy.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from asd_policy.records import read_record_file
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.settings import TrainSettings
from asd_policy.training.trackers import TRACKERS


@dataclass(frozen=True)
class Machine:
    """Where and how to train, and where to show the losses. It changes the speed, and the result up to rounding."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train, such as cpu or cuda."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    compile: bool = False
    """Run the network through torch.compile."""
    accumulate: int = 1
    """Parts in which each process computes its share of a batch, one after another, to save memory."""
    track: tuple[str, ...] = ()
    """Where to show the losses besides log.jsonl: tensorboard, wandb."""

    def __post_init__(self) -> None:
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise ConfigError(f"device is {self.device!r}; expected cpu, cuda or another of torch's.") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device is {self.device!r}, but torch finds no CUDA device here. Take cpu.")
        if self.threads is not None and not is_count(self.threads):
            raise ConfigError(f"threads is {self.threads}; expected at least 1.")
        if not is_count(self.accumulate):
            raise ConfigError(f"accumulate is {self.accumulate}; expected at least 1.")
        for name in self.track:
            if name not in TRACKERS:
                raise UnknownNameError("tracker", name, TRACKERS)

    def set_threads(self) -> None:
        """Limit torch's CPU threads, if `threads` is given."""
        if self.threads:
            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class RunInfo:
    """`train.json`. With the code, the data and `config.json` it determines the weights.

    Attributes:
        data: path of the demonstrations, or their repository on the hub and its commit.
        episodes: number of episodes to read, from the first on; None reads all.
        ignored: entries of observations to hide from the policy: a key and its indices.
        init: path of the checkpoint that the run starts from.
        settings: hyperparameters.
        filter_key: the mask of an HDF5 file that selects demonstrations.
        absolute: train on the target poses of an HDF5 file.
        obs_keys: observations in the policy's order; empty for the file's own.
        held_out: number of last episodes reserved for validation.
        foreseeable: leave out windows with a larger disturbance after the policy's last observation.
        clip_actions: clip delta actions outside [-1, 1].
        action_key: the array of actions; None for the format's own.
        env_id: the environment; None for the data's own.
        fingerprint: hash of the demonstrations, so that a run is not resumed on other data. Older runs lack it.
    """

    data: str
    episodes: int | None
    ignored: Mapping[str, Sequence[int]]
    init: str | None
    settings: TrainSettings
    filter_key: str | None = None
    absolute: bool = False
    obs_keys: tuple[str, ...] = ()
    held_out: int = 0
    foreseeable: float | None = None
    clip_actions: bool = False
    action_key: str | None = None
    env_id: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.foreseeable is not None and not self.foreseeable >= 0:
            raise ConfigError(f"foreseeable is {self.foreseeable}; expected a number, 0 or more.")

    def save(self, path: Path) -> None:
        """Write `train.json`."""
        later = ("action_key", "env_id")  # earlier versions do not know them
        values = asdict(self) | {"settings": self.settings.to_dict()}
        values = {name: value for name, value in values.items() if value is not None or name not in later}
        path.write_text(json.dumps(values, indent=2) + "\n")

    def read(self) -> Demonstrations:
        """The run's demonstrations.

        Raises:
            DataError: if they are missing or have changed since the run began.
        """
        demonstrations = Demonstrations.read(
            self.data,
            self.episodes,
            self.filter_key,
            self.absolute,
            self.obs_keys,
            self.clip_actions,
            self.action_key,
            self.env_id,
        )
        check_same_data(self.data, self.fingerprint, demonstrations.fingerprint())
        return demonstrations

    @classmethod
    def load(cls, path: Path) -> RunInfo:
        """Read `train.json`. Fields with defaults may be missing. Raises CheckpointError if the file is damaged."""
        return read_record_file(cls, path, "training settings", CheckpointError)


def check_same_data(data: str, expected: str | None, got: str) -> None:
    """Raise DataError if the data's fingerprint differs from the run's, if that is known."""
    if expected not in (None, got):
        raise DataError(
            f"{data} has changed since the run began: its fingerprint is {got}; expected {expected}. Put the old data "
            "back, or start a new run."
        )


def check_new(out: Path) -> None:
    """Raise ConfigError if the run's directory exists."""
    if out.exists():
        raise ConfigError(f"{out} exists already: resume it, or choose another directory.")


def make_run(out: Path, write: Callable[[Path], object]) -> None:
    """Make a run's directory with the files that `write` writes into a given folder: all of them, or no directory.

    So a killed run can be resumed (from its beginning if it has no last.pt yet) or started anew.

    Raises:
        ConfigError: if the directory exists or cannot be made.
    """
    check_new(out)
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"Cannot make the run's directory {out}: {error}") from error
