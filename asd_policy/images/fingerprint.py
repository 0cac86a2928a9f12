"""A hashable value for the objects that a CUDA graph depends on, equal for equal computations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
CODE = (FunctionType, MethodType, ModuleType)


class Same:
    """Equal to wrappers of the same object. It keeps the object alive, so that no other object can get its id."""

    def __init__(self, value: Any):
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value


def fingerprint(value: Any) -> Hashable:
    """A hashable value that is equal for two values if a graph captured with one is valid for the other.

    Numbers, strings and containers compare by content, and objects by their attributes, recursively. Tensors compare by
    address, because a graph reads their present content. A single number on the CPU compares by value, because a graph
    holds it as a constant. Objects without attributes, such as functions, compare by identity.
    """
    return _fingerprint(value, {})


def _fingerprint(value: Any, seen: dict[int, int]) -> Hashable:
    if isinstance(value, PLAIN):
        return type(value), value
    if id(value) in seen:
        return Same, seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        constant = value.device.type == "cpu" and value.numel() == 1
        content = value.item() if constant else value.data_ptr()
        return value.device, value.dtype, value.shape, value.stride(), content
    attributes = getattr(value, "__dict__", None)
    if isinstance(value, Mapping):
        return type(value), tuple((_fingerprint(key, seen), _fingerprint(held, seen)) for key, held in value.items())
    if isinstance(value, list | tuple | Set):
        return type(value), tuple(_fingerprint(held, seen) for held in value)
    if not attributes or isinstance(value, CODE):
        return Same(value)
    return type(value), tuple((name, _fingerprint(held, seen)) for name, held in attributes.items())
