"""Transfers of several tensors at once between the host and a device.

Each transfer costs the host of a GPU some ten microseconds, whatever its size. A transfer to the host also waits for
all work queued on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy the host's tensors to the device, without waiting for the copy."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    packed, unpack = _packed(tensors)
    return unpack(packed.pin_memory().to(device, non_blocking=True))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy a device's tensors to the host, and wait for them."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    packed, unpack = _packed(tensors)
    return unpack(packed.cpu())


def moved(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device; the same tensors if they are there already."""
    return tuple(tensor.to(device) for tensor in tensors)


def _packed(tensors: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The bytes of tensors of any types, concatenated, and the function that restores the tensors from such bytes."""
    widest_first = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that all are aligned
    parts = [tensors[i].contiguous().flatten().view(torch.uint8) for i in widest_first]

    def unpack(packed: Tensor) -> list[Tensor]:
        pieces = dict(zip(widest_first, torch.split(packed, [len(part) for part in parts]), strict=True))
        return [pieces[i].view(tensor.dtype).view(tensor.shape) for i, tensor in enumerate(tensors)]

    return torch.cat(parts), unpack
