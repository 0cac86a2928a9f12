"""Converts image encoders of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.files import TensorPool
from asd_policy.importers.statistics import Statistics
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.keyed import module_name

PIXEL = 255
"""The largest pixel. Other libraries normalise pixels in [0, 1], this package in [0, 255]."""


def image_field(statistics: Statistics, channels: int) -> Statistics:
    """The normalisation (C,) of pixels in [0, 255], from that of pixels in [0, 1], which is a number or (C, 1, 1)."""
    scale, offset, center = (value.double().flatten().expand(channels) for value in statistics)
    return Statistics(scale / PIXEL, offset, center * PIXEL)


def visual_core(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """robomimic's VisualCore with a spatial softmax as an `asd_policy.nets.vision.ImageEncoder`.

    Args:
        tensors: the tensors of `obs_nets.<key>`, which contain backbone and pool twice: by name, and within `nets`.

    Raises:
        CheckpointError: if they belong to another kind of encoder.
    """
    pool = TensorPool(tensors, where)
    backbone, softmax, linear = (pool.take_all(f"nets.{place}.") for place in (0, 1, 3))
    for prefix, used in (("backbone.", backbone), ("pool.", softmax)):
        copy = pool.take_all(prefix)
        if copy.keys() != used.keys() or not all(torch.equal(copy[name], used[name]) for name in copy):
            raise CheckpointError(f"{where}: {prefix}* is not the encoder's; expected the same tensors twice.")
    pool.finish()
    softmax_pool = TensorPool(softmax, where)
    temperature = softmax_pool.take("temperature")
    encoder = {f"backbone.{name.removeprefix('nets.')}": value for name, value in backbone.items()}
    for name in ("weight", "bias"):  # the temperature of the softmax divides its input
        encoder[f"pool.conv.{name}"] = softmax_pool.take(f"nets.{name}") / temperature
    for grid in ("pos_x", "pos_y"):
        softmax_pool.take(grid)  # coordinates, which follow from the image's size
    softmax_pool.finish()
    return encoder | {f"out.{name}": value for name, value in linear.items()}


def image_key(
    key: str,
    shape: tuple[int, int, int],
    encoder: Mapping[str, Tensor],
    where: str,
    crop: tuple[int, ...] = (),
    resize: tuple[int, ...] = (),
    backbone: str = "resnet18",
) -> tuple[ImageKey, int]:
    """The image with this encoder, and its number of features.

    Args:
        shape: channels, height and width.
        crop, resize, backbone: see `ImageKey`.

    Raises:
        CheckpointError: if the encoder has no spatial softmax.
    """
    channels, height, width = shape
    try:
        keypoints, features = encoder["pool.conv.weight"].shape[0], encoder["out.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{where}: the encoder of {key!r} has no {error}; expected a spatial softmax.") from error
    norm = "batch" if any(name.endswith("running_mean") for name in encoder) else "group"
    return ImageKey(key, (height, width, channels), crop, resize, backbone, norm, keypoints), features


def rgb_encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """lerobot's DiffusionRgbEncoder as an `asd_policy.nets.vision.ImageEncoder`."""
    grid = "pool.pos_grid"  # coordinates, which follow from the image's size
    return {name.replace("pool.nets.", "pool.conv."): value for name, value in tensors.items() if name != grid}


RESNET_PARTS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
"""Modules of torchvision's ResNet -> their places in the backbone of an `ImageEncoder`."""


def torchvision_resnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ResNet without its classifier as an `asd_policy.nets.vision.ImageEncoder` that averages."""
    named = {name: name.partition(".") for name in tensors}
    return {
        f"backbone.{RESNET_PARTS.get(first, first)}.{rest}": tensors[name] for name, (first, _, rest) in named.items()
    }


def encoder_tensors(key: str, encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """The encoder's tensors under their names in a checkpoint."""
    return {f"{encoder_prefix(key)}{name}": value for name, value in encoder.items()}


def encoder_prefix(key: str) -> str:
    """The prefix of an encoder's tensors in a checkpoint."""
    return f"encoders.{module_name(key)}."
