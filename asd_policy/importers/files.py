"""Reads JSON and safetensors from untrusted files, and tracks which tensors were used."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.policies.config import MAX_KEYS

MAX_JSON_BYTES = 16 * 2**20
LISTED = 8
WRAPPERS = ("module", "_orig_mod")
KEYED = ("fields", "params_dict", "obs_nets", "key_model_map", "encoders")
"""Modules whose children are named by observation keys."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises CheckpointError if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"Cannot read the weights {path}: there is no such file.")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file complete?") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError if the file is missing, too large, or holds none."""
    try:
        if not path.is_file():
            raise CheckpointError(f"Cannot read {path}: there is no such file.")
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_JSON_BYTES} allowed.")
        return json_object(data.decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from error


def json_object(text: Any, where: str) -> dict[str, Any]:
    """A JSON object from a string. Raises CheckpointError on infinite numbers and repeated names too."""
    try:
        data = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_once)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} holds no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds no JSON object but {type(data).__name__}.")
    return data


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is not finite")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} stands twice in one object")
    return data


def entry(data: Any, path: str | tuple[str, ...], where: str) -> Any:
    """`data["a"]["b"]` for the path "a.b" or ("a", "b"). Raises CheckpointError naming the first missing key."""
    keys = tuple(path.split(".")) if isinstance(path, str) else path
    for depth, key in enumerate(keys):
        if not isinstance(data, Mapping) or key not in data:
            known = ", ".join(map(str, list(data)[:20])) if isinstance(data, Mapping) else type(data).__name__
            missing = ".".join(keys[: depth + 1])
            raise CheckpointError(
                f"{where} lacks {missing!r}, so it is not of a supported version; it has {known:.1000}."
            )
        data = data[key]
    return data


def check_count(observations: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError on too many observations. Each would cost a search through all tensors."""
    if len(observations) > MAX_KEYS:
        raise CheckpointError(f"{where} has {len(observations)} observations; expected at most {MAX_KEYS}.")


def unwrapped(name: str) -> str:
    """A tensor's name without the wrapper modules of torch.compile and data-parallel training."""
    parts = name.split(".")
    kept = [part for before, part in zip(["", *parts], parts, strict=False) if part not in WRAPPERS or before in KEYED]
    return ".".join(kept)


class TensorPool:
    """A file's tensors, each to be taken once. `finish` raises an error that names the tensors left over.

    Names lack the wrapper modules in `WRAPPERS`.
    """

    def __init__(self, tensors: Any, where: str):
        if not isinstance(tensors, Mapping):
            raise CheckpointError(f"{where} holds no tensors by name but {type(tensors).__name__}.")
        self._left: dict[str, Any] = {}
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise CheckpointError(f"{where}: a tensor is called {name!r:.200}; expected a name.")
            if not isinstance(value, Tensor) and not hasattr(value, "shape"):
                raise CheckpointError(f"{where}: {name} is no tensor but {type(value).__name__}.")
            plain = unwrapped(name)
            if plain in self._left:
                raise CheckpointError(f"{where} holds {plain} twice, once as {name}.")
            self._left[plain] = value
        self._where = where

    def take(self, name: str) -> Any:
        """Remove and return the tensor `name`. Raises CheckpointError if there is none."""
        if name not in self._left:
            raise CheckpointError(f"{self._where} lacks the tensor {name}; left are {self._listed(list(self._left))}.")
        return self._left.pop(name)

    def take_all(self, prefix: str) -> dict[str, Any]:
        """Remove and return the tensors whose names begin with `prefix`; the returned names lack it."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._left.pop(name) for name in names}

    def finish(self) -> None:
        """Raise CheckpointError naming the tensors that were not taken, if any."""
        if self._left:
            raise CheckpointError(
                f"{self._where} holds {len(self._left)} tensors that no part of the policy uses: "
                f"{self._listed(list(self._left))}."
            )

    @staticmethod
    def _listed(names: list[str]) -> str:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return (", ".join(names[:LISTED]) or "none") + more
