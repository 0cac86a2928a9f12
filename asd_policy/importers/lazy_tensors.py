"""Tensors of a torch file, described by its pickle and read on demand.

Unused tensors, such as an optimizer's state, are never read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.torch_file import TorchFile

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
MAX_DIMS = 16


class Storage(NamedTuple):
    """The numbers in one record of the file."""

    record: str
    dtype: torch.dtype
    numel: int

    @classmethod
    def of(cls, pid: Any) -> Storage:
        """The storage described by a pickle's persistent id.

        Raises:
            ValueError: if the id describes no storage.
        """
        kind, dtype, record, _, numel = pid
        if kind != "storage" or not isinstance(record, str) or not _is_count(numel):
            raise ValueError("an invalid storage")
        return cls(record, DTYPES[dtype.name], numel)


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that has not been read from its file.

    Attributes:
        storage: the record with its numbers.
        offset, stride: its position in the record, counted in numbers.
        shape: the tensor's shape.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> LazyTensor:
        """The tensor that the pickle describes.

        Raises:
            ValueError: if the description is invalid.
        """
        sizes = (shape, stride)
        right = isinstance(storage, Storage) and all(isinstance(x, tuple) and len(x) <= MAX_DIMS for x in sizes)
        if not right or len(shape) != len(stride) or not all(_is_count(x) for x in (offset, *shape, *stride)):
            raise ValueError("a tensor without storage, or with invalid sizes")
        return cls(storage, offset, shape, stride)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


class TensorReader:
    """Reads tensors of a file. Each record of the file is read once."""

    def __init__(self, file: TorchFile) -> None:
        self._file = file
        self._left = 4 * file.path.stat().st_size + 2**20  # bytes for all tensors, which may share records
        self._flat: dict[str, Tensor] = {}
        self._given: set[str] = set()

    def read_all(self, state: Any) -> Any:
        """A state dict with its tensors read. Anything else is returned unchanged, for the caller to reject."""
        if not isinstance(state, Mapping):
            return state
        return {name: self.read(value) if isinstance(value, LazyTensor) else value for name, value in state.items()}

    def read(self, tensor: LazyTensor) -> Tensor:
        """Read the tensor into its own memory.

        Raises:
            CheckpointError: if its shape does not fit into its record.
        """
        storage, shape, numel = tensor.storage, tensor.shape, tensor.numel
        flat = self._record(storage)
        last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, tensor.stride, strict=True))
        if numel and (numel > len(flat) or last >= len(flat)):
            size = len(flat) * storage.dtype.itemsize
            raise CheckpointError(f"{self._file.path}: a tensor of shape {shape} does not fit its {size} bytes.")
        self._left -= numel * storage.dtype.itemsize
        if self._left < 0:
            raise CheckpointError(f"{self._file.path}: its tensors are several times larger than the file; refused.")
        if not numel:
            return torch.empty(shape, dtype=storage.dtype)
        view = flat.as_strided(shape, tensor.stride, tensor.offset).contiguous()
        shared = storage.record in self._given or view.numel() < len(flat)
        self._given.add(storage.record)
        return view.clone() if shared else view

    def _record(self, storage: Storage) -> Tensor:
        key = f"{storage.record} {storage.dtype}"
        if key not in self._flat:
            raw = self._file.record(f"data/{storage.record}")
            if len(raw) != storage.numel * storage.dtype.itemsize:
                raise CheckpointError(f"{self._file.path}: {storage.numel} numbers do not fit its {len(raw)} bytes.")
            flat = torch.frombuffer(bytearray(raw), dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype)
            self._flat[key] = flat
        return self._flat[key]
