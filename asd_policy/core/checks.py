"""Checks of arguments. Each raises ConfigError with the value found and the one expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from operator import index

import torch
from torch import Tensor

from asd_policy.errors import ConfigError


def as_count(value: int, name: str) -> int:
    """The value as an int; NumPy's integers are fine. Raises ConfigError unless it is an integer of at least 1."""
    return _as_integer(value, 1, name)


def as_event_shape(event_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple of ints. Raises ConfigError unless it is a sequence of integers of at least 1."""
    try:
        sizes = tuple(event_shape)
    except TypeError as error:
        raise ConfigError(f"event_shape is {event_shape!r}; expected a tuple of sizes, such as (16, 7).") from error
    return tuple(as_count(size, "each entry of event_shape") for size in sizes)


def as_seed(value: int) -> int:
    """The value as an int; NumPy's integers are fine. Raises ConfigError unless it is an integer of at least 0."""
    return _as_integer(value, 0, "The seed")


def as_positive(value: float, name: str) -> float:
    """The value as a float. Raises ConfigError unless it is a positive, finite number."""
    if not is_real(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; expected a positive number.")
    return float(value)


def as_levels(levels: Tensor | Sequence[float], name: str = "sigmas") -> Tensor:
    """The levels (K + 1,), K >= 1, as float64 on the CPU.

    Raises ConfigError unless they are finite numbers that fall strictly, positive but for the last, which may be 0.
    """
    try:
        found = torch.as_tensor(levels, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is {levels!r:.80}; expected a vector of numbers.") from error
    falling = found.ndim == 1 and len(found) > 1 and bool((found.diff() < 0).all() and found[-1] >= 0)
    if not falling or not bool(found.isfinite().all()):
        raise ConfigError(f"{name} is {found.tolist()!s:.80}; expected two or more numbers that fall to 0 or above.")
    return found


def as_device(device: torch.device | str) -> torch.device:
    """The device with its index, as tensors name it. Raises ConfigError if this machine lacks it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ConfigError(f"device is {device!r}, which cannot be used here: {error}") from error


def check_condition(cond: Tensor | None, batch_size: int) -> None:
    """Raise ConfigError unless `cond` is None or a tensor (batch_size, ...)."""
    if cond is None:
        return
    if not isinstance(cond, Tensor) or cond.ndim == 0:
        raise ConfigError(f"cond is {cond!r:.80}; expected a tensor with one row per sample, or None.")
    if len(cond) != batch_size:
        raise ConfigError(f"cond has {len(cond)} rows for batch_size {batch_size}; expected one row per sample.")


def is_real(value: object) -> bool:
    """Whether the value is a real number, of Python or NumPy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether the value is an integer, of Python, NumPy or torch, and no bool."""
    try:
        return not isinstance(value, bool) and index(value) is not None  # type: ignore[arg-type]
    except TypeError:
        return False


def _as_integer(value: int, least: int, name: str) -> int:
    if not is_integer(value) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}.")
    return index(value)
