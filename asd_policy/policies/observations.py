"""Checks observations and converts them to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.errors import ObservationError, UnknownNameError

Observation = Mapping[str, NDArray[Any] | Tensor]

IMAGES = ("uint8_hwc", "uint8_chw", "float_hwc", "float_chw")
"""Formats of images: bytes from 0 to 255 or floats from 0 to 1; channels last (H, W, C) or first (C, H, W)."""


def check_image_format(images: str) -> None:
    """Raise UnknownNameError unless `images` is one of `IMAGES`."""
    if images not in IMAGES:
        raise UnknownNameError("format of images", images, IMAGES)


def batch_size_of(obs: Observation, key: str) -> int:
    """B, the number of rows of a batched observation (B, ...), from its entry `key`.

    Raises:
        ObservationError: if it is missing or has no rows.
    """
    shape = np.shape(_entry(obs, key))
    if not shape or shape[0] == 0:
        raise ObservationError(f"Observation {key!r} has shape {shape}; expected (B, ...), a row per environment.")
    return int(shape[0])


def checked(obs: Observation, key: str, shape: tuple[int, ...], image: str | None = None) -> Tensor:
    """The observation `key` on the CPU: float32; an image with its channels last and pixels from 0 to 255.

    Args:
        obs: NumPy arrays, lists of numbers, or tensors on any device, by key.
        shape: the expected shape; (*batch, H, W, C) for an image in any format.
        image: the image's format, one of `IMAGES`; None for a vector.

    Returns:
        float32 of that shape; uint8 for an image of bytes.

    Raises:
        ObservationError: if it is missing, not an array of real numbers, of another shape or format, or not finite.
    """
    value = _tensor(_entry(obs, key), key, image)
    channels_first = image is not None and image.endswith("chw")
    expected = (*shape[:-3], shape[-1], *shape[-3:-1]) if channels_first else shape
    if tuple(value.shape) != expected:
        told = "" if image is None else f", as {image}"
        raise ObservationError(f"Observation {key!r} has shape {tuple(value.shape)}; expected {expected}{told}.")
    if not bool(value.isfinite().all()):
        raise ObservationError(f"Observation {key!r} has values that are not finite: {obs[key]}.")
    if image is not None and value.is_floating_point():
        if not bool(((value >= 0) & (value <= 1)).all()):
            low, high = float(value.min()), float(value.max())
            raise ObservationError(f"Observation {key!r} has pixels from {low} to {high}; expected 0 to 1, as {image}.")
        value = 255 * value
    return value.movedim(-3, -1) if channels_first else value


def _entry(obs: Observation, key: str) -> NDArray[Any] | Tensor:
    if not isinstance(obs, Mapping):
        raise ObservationError(f"The observation is a {type(obs).__name__}; expected a dict of arrays by key.")
    if key not in obs:
        raise ObservationError(f"The observation lacks {key!r}; it has {', '.join(map(repr, obs)) or 'nothing'}.")
    return obs[key]


def _tensor(value: Any, key: str, image: str | None) -> Tensor:
    if isinstance(value, np.ma.MaskedArray) and bool(np.any(value.mask)):
        raise ObservationError(f"Observation {key!r} has masked values; expected all of them.")
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            value = (value.float() if value.is_floating_point() else value).numpy()
        array = np.array(value)
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise ObservationError(f"Observation {key!r} is not an array of numbers: {error}") from error
    if image is not None and image.startswith("uint8") and array.dtype != np.uint8:
        raise ObservationError(
            f"Observation {key!r} is of {array.dtype}; expected an image of uint8, pixels from 0 to 255."
        )
    if image is not None and image.startswith("float") and array.dtype.kind != "f":
        raise ObservationError(f"Observation {key!r} is of {array.dtype}; expected an image of floats from 0 to 1.")
    if array.dtype.kind not in "fiub":  # NumPy would drop imaginary parts, and read text as numbers
        raise ObservationError(f"Observation {key!r} is not an array of numbers: its type is {array.dtype}.")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused
        return torch.from_numpy(array if array.dtype == np.uint8 and image else array.astype(np.float32))
