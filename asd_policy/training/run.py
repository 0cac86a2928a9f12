"""A training run on disk: what it reads from a store of demonstrations, and what it writes.

The run's directory:

    config.json               the policy's configuration
    train.json                where the data came from, and the settings
    normalizer.safetensors    what normalises the data
    last.pt                   state to resume from
    ema_<step>.safetensors    weights of a policy, ready to be put beside config.json
    log.jsonl, loss.png       the loss so far

All of it is written by `scripts/train.py`.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from asd_policy.errors import CheckpointError, ConfigError, DataError
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.loop import TrainSettings, write_atomically
from asd_policy.training.settings import is_count

__all__ = ["Demonstrations", "LossLog", "Machine", "RunInfo", "check_new", "check_same_data", "make_run"]


@dataclass(frozen=True)
class Machine:
    """Where to run: changes how fast, not what is learned."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train, such as cpu or cuda."""
    threads: int | None = None
    """CPU threads; all cores unless given."""
    compile: bool = False
    """Run the network through torch.compile."""

    def __post_init__(self) -> None:
        try:
            kind = torch.device(self.device).type
        except RuntimeError as error:
            raise ConfigError(f"device is {self.device!r}; expected cpu, cuda or another of torch's.") from error
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device is {self.device!r}, but torch finds no CUDA device here. Take cpu.")
        if self.threads is not None and not is_count(self.threads):
            raise ConfigError(f"threads is {self.threads}; expected at least 1.")

    def set_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)


@dataclass(frozen=True)
class RunInfo:
    """`train.json`: with the code and `config.json`, what is needed to train the same weights again."""

    data: str
    episodes: int | None
    ignored: Mapping[str, Sequence[int]]
    init: str | None
    settings: TrainSettings
    filter_key: str | None = None
    absolute: bool = False
    obs_keys: Sequence[str] = ()
    held_out: int = 0
    foreseeable: float | None = None
    clip_actions: bool = False
    fingerprint: str | None = None
    """Of the demonstrations, so that a run is not resumed on others; older runs lack it."""

    def __post_init__(self) -> None:
        if self.foreseeable is not None and not self.foreseeable >= 0:
            raise ConfigError(f"foreseeable is {self.foreseeable}; expected a number, 0 or more.")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def read(self) -> Demonstrations:
        """The run's demonstrations.

        Raises:
            DataError: if they are not there, or are others than those that the run began with.
        """
        demonstrations = Demonstrations.read(
            self.data, self.episodes, self.filter_key, self.absolute, self.obs_keys, self.clip_actions
        )
        check_same_data(self.data, self.fingerprint, demonstrations.fingerprint())
        return demonstrations

    @classmethod
    def load(cls, path: Path) -> "RunInfo":
        try:
            values = dict(json.loads(path.read_text()))
            values["obs_keys"] = tuple(values.get("obs_keys", ()))  # which older runs lack
            return cls(**{**values, "settings": TrainSettings(**values["settings"])})
        except (OSError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise CheckpointError(f"Cannot read the training settings {path}: {error}") from error


def check_same_data(data: str, expected: str | None, got: str) -> None:
    """Raise DataError unless data have the fingerprint that a run began with, if it is known."""
    if expected not in (None, got):
        raise DataError(
            f"{data} has changed since the run began: its fingerprint is {got}; expected {expected}. Put the old data "
            "back, or start a new run."
        )


def check_new(out: Path) -> None:
    """Raise ConfigError if a run's directory exists."""
    if out.exists():
        raise ConfigError(f"{out} exists already: resume it, or choose another directory.")


def make_run(out: Path, write: Callable[[Path], object]) -> None:
    """Make a run's directory with the files that `write` puts into a folder: with all of them or not at all.

    So a run that is killed is either resumed (without a last.pt, from its beginning) or begun anew.
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


class LossLog:
    """`log.jsonl`: one line per logged step. Lines past the step that a run resumes from are dropped.

    So is a last line that was cut off while it was written.

    Raises:
        CheckpointError: if another line is damaged, or the file cannot be written.
    """

    def __init__(self, path: Path, resumed_step: int):
        self._path = path
        self.entries = [entry for entry in _read_log(path) if entry["step"] <= resumed_step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write_atomically(path, lambda target: target.write_text(text))

    def append(self, **entry: float) -> None:
        self.entries.append(entry)
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise CheckpointError(f"Cannot write {self._path}: {error}") from error

    def plot(self, path: Path) -> None:
        """Draw the loss over the steps."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
        axes.plot([e["step"] for e in self.entries], [e["loss"] for e in self.entries], label="training")
        held_out = [e for e in self.entries if "held_out_loss" in e]
        if held_out:
            axes.plot([e["step"] for e in held_out], [e["held_out_loss"] for e in held_out], "o-", label="held out")
            axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path, dpi=150)


def _read_log(path: Path) -> list[dict[str, float]]:
    """The whole lines of a log; none if there is no file."""
    written = path.read_bytes().rstrip(b"\0\r\n ") if path.exists() else b""  # a power cut can leave zeros
    lines = written.split(b"\n") if written else []
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry["step"], int):
                raise TypeError("its step is no integer")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):  # cut off while it was written
                break
            raise CheckpointError(
                f"{path} is damaged at line {number}: {error}. Remove the line: it only serves the plot of the loss."
            ) from error
        entries.append(entry)
    return entries
