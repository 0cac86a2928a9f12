"""Checks observations and converts them to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import ObservationError

Observation = Mapping[str, NDArray[Any] | Tensor]


def checked(obs: Observation, key: str, shape: tuple[int, ...], image: bool) -> Tensor:
    """The observation `key` on the CPU: float32, or uint8 for an image.

    Args:
        obs: NumPy arrays, lists of numbers, or tensors on any device, by key.
        shape: the expected shape.
        image: whether it is an image, with pixels from 0 to 255.

    Raises:
        ObservationError: if it is missing, not an array of real numbers, of another shape, or not finite.
    """
    if not isinstance(obs, Mapping):
        raise ObservationError(f"The observation is a {type(obs).__name__}; expected a dict of arrays by key.")
    if key not in obs:
        raise ObservationError(f"The observation lacks {key!r}; it has {', '.join(map(repr, obs)) or 'nothing'}.")
    value = _tensor(obs[key], key, image)
    if tuple(value.shape) != shape:
        raise ObservationError(f"Observation {key!r} has shape {tuple(value.shape)}; expected {shape}.")
    if not bool(value.isfinite().all()):
        raise ObservationError(f"Observation {key!r} has values that are not finite: {obs[key]}.")
    return value


def _tensor(value: Any, key: str, image: bool) -> Tensor:
    if isinstance(value, np.ma.MaskedArray) and bool(np.any(value.mask)):
        raise ObservationError(f"Observation {key!r} has masked values; expected all of them.")
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            value = (value.float() if value.is_floating_point() else value).numpy()
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise ObservationError(f"Observation {key!r} is not an array of numbers: {error}") from error
    if image and array.dtype != np.uint8:
        raise ObservationError(
            f"Observation {key!r} is of {array.dtype}; expected an image of uint8, pixels from 0 to 255."
        )
    if array.dtype.kind not in "fiub":  # NumPy would drop imaginary parts, and read text as numbers
        raise ObservationError(f"Observation {key!r} is not an array of numbers: its type is {array.dtype}.")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        return torch.from_numpy(array if image else array.astype(np.float32))
