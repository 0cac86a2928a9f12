"""Tensors between the host and a device, several in one transfer.

A transfer costs a GPU's host some ten microseconds whatever its size, and one back waits for all that the device has
been given to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors of the host, all of one type, on the device. On a GPU the host does not wait for the copy."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory().to(device, non_blocking=True)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of one device on the host, whatever their types."""
    if tensors[0].device.type == "cpu":
        return list(tensors)
    largest_first = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())  # so that all lie aligned
    parts = [tensors[i].contiguous().flatten().view(torch.uint8) for i in largest_first]
    bytes_read = torch.cat(parts).cpu().split([len(part) for part in parts])
    found = {i: part.view(tensors[i].dtype) for i, part in zip(largest_first, bytes_read, strict=True)}
    return [found[i].view(tensor.shape) for i, tensor in enumerate(tensors)]


def moved(tensors: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device; themselves if they are there already."""
    return tuple(tensor.to(device) for tensor in tensors)
