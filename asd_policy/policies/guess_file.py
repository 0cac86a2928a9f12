"""The file of a learned first guess, beside the weights that it belongs to.

A safetensors file with the tensors of `ChunkGuess`, and a `GuessRecord` as JSON in its metadata. It may come from a
stranger: reading it runs no code, and takes no more memory than the file's size on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from asd_policy.checks import expect, is_count
from asd_policy.errors import CheckpointError
from asd_policy.files import write_atomically
from asd_policy.policies.guess import ChunkGuess
from asd_policy.policies.windows import hash_of
from asd_policy.records import read_record

VERSION = 1
RECORD = "guess"
"""The record's key in the file's metadata."""
MAX_BYTES = 64 * 2**20
"""Largest file that is read."""
MAX_WIDTH = 4096
"""Most hidden units of a guess that is read."""


@dataclass(frozen=True)
class GuessRecord:
    """What a file's guess belongs to.

    Attributes:
        version: of the file's format.
        weights: `hash_of` the network that the guess was fitted for.
        conditions: how many conditions it was fitted to.
    """

    version: int
    weights: str
    conditions: int

    def __post_init__(self) -> None:
        expect(self.version == VERSION, "version", self.version, f"{VERSION}, the format that this asd-policy reads")
        expect(is_count(self.conditions), "conditions", self.conditions, "at least 1")


def save_guess(path: Path, guess: ChunkGuess, network: nn.Module, conditions: int) -> None:
    """Write a guess for a network, replacing the file atomically.

    Args:
        conditions: how many conditions the guess was fitted to.

    Raises:
        CheckpointError: if it cannot be written.
    """
    record = GuessRecord(VERSION, hash_of([network]), conditions)
    tensors = {name: value.detach().cpu().contiguous() for name, value in guess.state_dict().items()}
    metadata = {RECORD: json.dumps(asdict(record))}
    try:
        # safetensors' own save_file would make a file that its owner alone can read.
        write_atomically(path, lambda target: target.write_bytes(save(tensors, metadata)))
    except OSError as error:
        raise CheckpointError(f"Cannot write the first guess {path}: {error}.") from error


def load_guess(path: Path, network: nn.Module, cond_dim: int, event_shape: tuple[int, int]) -> ChunkGuess:
    """Read the guess of a network.

    Args:
        cond_dim: D, the size of the policy's condition.
        event_shape: (H, A), the shape of its chunks.

    Raises:
        CheckpointError: if the file cannot be read, belongs to other weights, or holds other tensors than a guess of
            these sizes.
    """
    text, tensors = _read(path)
    record = _record(text, path)
    weights = hash_of([network])
    if record.weights != weights:
        raise CheckpointError(
            f"The first guess {path} belongs to the weights {record.weights}; expected {weights}, the hash of this "
            "policy's network. Delete the file, fit it again (asd-policy calibrate CHECKPOINT --guess), or load the "
            "policy without it (guess=False)."
        )
    width = _width(tensors, path)
    guess = ChunkGuess(cond_dim, event_shape, width)
    expected = {name: (tuple(value.shape), value.dtype) for name, value in guess.state_dict().items()}
    got = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    if got != expected:
        wrong = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))[:4]
        told = "; ".join(f"{name:.80} is {got.get(name, 'missing')}, not {expected.get(name)}" for name in wrong)
        raise _unreadable(path, f"{told}, which a policy with conditions of {cond_dim} and chunks {event_shape} needs")
    bad = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if bad:
        raise _unreadable(path, f"{bad[0]} is not finite")
    guess.load_state_dict(tensors)
    return guess


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The record's JSON and all tensors."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _unreadable(path, f"it has {size} bytes; expected at most {MAX_BYTES}")
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            return metadata.get(RECORD, ""), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _unreadable(path, str(error)[:300]) from error


def _record(text: str, path: Path) -> GuessRecord:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"its metadata hold no {RECORD!r} in JSON ({error!s:.100})") from error
    return read_record(GuessRecord, data, f"The first guess {path}", CheckpointError)


def _width(tensors: Mapping[str, Tensor], path: Path) -> int:
    """The number of hidden units, from the shape of the first bias."""
    bias = tensors.get("first.bias")
    if bias is None or bias.ndim != 1 or not 1 <= len(bias) <= MAX_WIDTH:
        got = "missing" if bias is None else tuple(bias.shape)
        raise _unreadable(path, f"first.bias is {got}; expected 1 to {MAX_WIDTH} numbers")
    return len(bias)


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"Cannot read the first guess {path}: {why}. Delete the file, fit it again (asd-policy calibrate CHECKPOINT "
        "--guess), or load the policy without it (guess=False)."
    )
