"""Reading a stranger's files: JSON and safetensors, and the account of which tensors were used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asd_policy.errors import CheckpointError

MAX_JSON_BYTES = 16 * 2**20
LISTED = 8


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or CheckpointError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file complete?") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, more than the {MAX_JSON_BYTES} allowed.")
        return json_object(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from error


def json_object(text: Any, where: str) -> dict[str, Any]:
    """A JSON object from a string, or CheckpointError."""
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} holds no JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds no JSON object but {type(data).__name__}.")
    return data


def entry(data: Any, path: str, where: str) -> Any:
    """`data["a"]["b"]` for the path "a.b", or CheckpointError naming what is missing."""
    for depth, key in enumerate(path.split(".")):
        if not isinstance(data, Mapping) or key not in data:
            known = ", ".join(map(str, list(data)[:20])) if isinstance(data, Mapping) else type(data).__name__
            missing = ".".join(path.split(".")[: depth + 1])
            raise CheckpointError(
                f"{where} lacks {missing!r}, so it is no file of the version read here; it has {known}."
            )
        data = data[key]
    return data


class TensorPool:
    """A file's tensors, each to be taken once: what is left over in the end is an error, not a silence."""

    def __init__(self, tensors: Mapping[str, Any], where: str):
        self._left: dict[str, Any] = {}
        for name, value in tensors.items():
            if not isinstance(value, Tensor) and not hasattr(value, "shape"):
                raise CheckpointError(f"{where}: {name} is no tensor but {type(value).__name__}.")
            self._left[name] = value
        self._where = where

    def take(self, name: str) -> Any:
        """The tensor `name`."""
        if name not in self._left:
            raise CheckpointError(f"{self._where} lacks the tensor {name}; left are {self._listed(list(self._left))}.")
        return self._left.pop(name)

    def take_all(self, prefix: str) -> dict[str, Any]:
        """Every tensor below `prefix`, named without it."""
        names = [name for name in self._left if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._left.pop(name) for name in names}

    def finish(self) -> None:
        """Raise CheckpointError unless every tensor was taken."""
        if self._left:
            raise CheckpointError(
                f"{self._where} holds {len(self._left)} tensors that no part of the policy uses: "
                f"{self._listed(list(self._left))}."
            )

    @staticmethod
    def _listed(names: list[str]) -> str:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return (", ".join(names[:LISTED]) or "none") + more
