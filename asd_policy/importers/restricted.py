"""A reader of torch pickles that can build tensors, containers and OmegaConf nodes, and nothing else.

Every global that a pickle names is looked up in a table of harmless stand-ins made for this one file. Tensors stay
descriptions of where their numbers lie until `LazyTensor.read` is called: what is not used (an optimizer) is not read.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError, UnsafeFileError
from asd_policy.importers.torch_file import MAX_PICKLE_BYTES, TorchFile

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
OMEGACONF = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": (
        "AnyNode", "BooleanNode", "BytesNode", "FloatNode", "IntegerNode", "PathNode", "StringNode",
    ),
}  # fmt: skip
TYPE_NAMES = ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")


class Node:
    """What stands in for an OmegaConf node: its attributes, and no behaviour."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a record of the file."""

    record: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, file: TorchFile) -> Tensor:
        """The tensor itself.

        Raises:
            CheckpointError: if its shape does not fit into its record.
        """
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        sizes = (self.offset, *self.shape, *self.stride)
        fits = min(sizes) >= 0 and math.prod(self.shape) <= self.storage.numel and last < self.storage.numel
        raw = file.record(f"data/{self.storage.record}")
        if (math.prod(self.shape) and not fits) or len(raw) != self.storage.numel * self.storage.dtype.itemsize:
            raise CheckpointError(f"{file.path}: a tensor of shape {self.shape} does not fit its {len(raw)} bytes.")
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(bytearray(raw), dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset).contiguous()


def read_restricted(file: TorchFile) -> Any:
    """The object in the file, with LazyTensor for tensors and Node for OmegaConf nodes. Runs none of the file's code.

    Raises:
        UnsafeFileError: naming the first thing it wants to build or call that is not allowed.
        CheckpointError: if the pickle is damaged.
    """
    file.strings()  # refuses memory bombs
    try:
        return _Unpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can fail in any way; it has called nothing but stand-ins
        raise CheckpointError(f"{file.path}: its pickle is damaged: {error!r}. Is the file complete?") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: TorchFile):
        super().__init__(io.BytesIO(file.record("data.pkl", MAX_PICKLE_BYTES)))
        self._path = file.path
        self._globals = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise UnsafeFileError(self._path, f"{module}.{name}")
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, record, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int):
            raise CheckpointError(f"{self._path}: unknown storage {kind!r} of {dtype!r}.")
        return Storage(str(record), dtype, numel)


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle gets for each global it may name. Made anew for each file: a pickle can set attributes on them."""
    table: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): partial(_tensor),
        ("torch._utils", "_rebuild_parameter"): partial(_parameter),
        ("torch", "Size"): partial(tuple),
        ("collections", "OrderedDict"): type("OrderedDict", (OrderedDict,), {}),
        ("collections", "defaultdict"): partial(_empty_dict),
        ("_codecs", "encode"): partial(_encoded),
        ("typing", "Any"): "typing.Any",
        ("dill._dill", "_load_type"): partial(str),
    }
    table |= {("torch", name): dtype for name, dtype in DTYPES.items()}
    table |= {("builtins", name): f"builtins.{name}" for name in TYPE_NAMES}
    node = type("Node", (Node,), {})
    return table | {(module, name): node for module, names in OMEGACONF.items() for name in names}


def _tensor(storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> LazyTensor:
    return LazyTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(tensor: LazyTensor, *_: Any) -> LazyTensor:
    return tensor


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _encoded(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    if encoding != "latin1":
        raise ValueError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


def plain_config(node: Any, where: str) -> Any:
    """Dicts, lists and values of an OmegaConf configuration; interpolations stay the strings they are.

    Raises:
        CheckpointError: if it contains itself.
    """
    return _Plain(where).convert(node)


class _Plain:
    """Converts each node once: a small pickle can refer to the same node from a great many places."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def convert(self, node: Any) -> Any:
        if not isinstance(node, Node | Mapping | list):
            return node
        if id(node) in self._open or len(self._open) > 100:
            raise CheckpointError(f"{self._where}: its configuration contains itself, or is over 100 levels deep.")
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = self._converted(node)
            self._open.remove(id(node))
        return self._done[id(node)]

    def _converted(self, node: Any) -> Any:
        if isinstance(node, Node):
            state = vars(node)
            return self.convert(state.get("_content", state.get("_val")))
        if isinstance(node, Mapping):
            return {key: self.convert(value) for key, value in node.items()}
        return [self.convert(value) for value in node]
