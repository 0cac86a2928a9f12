"""Tensors between the host and a device, several in one transfer.

A transfer costs a GPU's host some ten microseconds whatever its size, and one back waits for all that the device has
been given to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The host's tensors on the device. The host does not wait for a GPU to have them."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    packed, unpack = _packed(tensors)
    return unpack(packed.pin_memory().to(device, non_blocking=True))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A device's tensors on the host."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    packed, unpack = _packed(tensors)
    return unpack(packed.cpu())


def moved(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device; themselves if they are there already."""
    return tuple(tensor.to(device) for tensor in tensors)


def _packed(tensors: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The bytes of tensors of any types side by side, and what makes the tensors of such bytes again."""
    widest_first = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that all lie aligned
    parts = [tensors[i].contiguous().flatten().view(torch.uint8) for i in widest_first]

    def unpack(packed: Tensor) -> list[Tensor]:
        pieces = dict(zip(widest_first, torch.split(packed, [len(part) for part in parts]), strict=True))
        return [pieces[i].view(tensor.dtype).view(tensor.shape) for i, tensor in enumerate(tensors)]

    return torch.cat(parts), unpack
