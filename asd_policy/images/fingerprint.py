"""What a CUDA graph of a computation holds on to, as a value that two equal computations share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Set
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

PLAIN = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
CODE = (FunctionType, MethodType, ModuleType)


class Same:
    """Equal to what wraps the same object, which it keeps alive: no later object can take its place in memory."""

    def __init__(self, value: Any):
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value


def fingerprint(value: Any) -> Hashable:
    """Equal for two values if a graph that was captured with the one is right for the other.

    Numbers, strings and containers count by what they hold, and objects by their attributes, all the way down. Tensors
    count by where they lie: a graph reads there what they hold at the time. A single number on the CPU counts by its
    value, which a graph has among its constants. Whatever has no attributes, such as a function, counts as itself.
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
