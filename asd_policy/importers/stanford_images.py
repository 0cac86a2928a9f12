"""The observations of real-stanford's image policies, and their encoders.

- DiffusionUnetHybridImagePolicy: robomimic's VisualCore for each image.
- DiffusionUnetImagePolicy: MultiImageObsEncoder, a ResNet of torchvision for each image or one for all, whose features
  are averaged over the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.files import TensorPool, check_count
from asd_policy.importers.stanford_settings import class_name, flag, setting
from asd_policy.importers.statistics import Statistics
from asd_policy.importers.vision import image_field, image_key, torchvision_resnet, visual_core
from asd_policy.policies.image_keys import ImageKey, central_crop

HYBRID, MULTI_IMAGE = "DiffusionUnetHybridImagePolicy", "DiffusionUnetImagePolicy"
SHARED = "rgb"
"""The name of the one ResNet that encodes all images."""

UNFILTERED = (
    "Images are resized without antialiasing, as in torchvision 0.13 of real-stanford's environment; the file does not "
    "say which version it was trained with, and versions from 0.17 on filter."
)
"""A note for policies that resize images."""

LAST_LAYER = "backbone.7."
"""The last layer of a ResNet; its widest module has as many channels as the encoder has features."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_SETTINGS = (
    "_target_", "shape_meta", "rgb_model", "resize_shape", "crop_shape", "random_crop", "use_group_norm",
    "share_rgb_model", "imagenet_norm",
)  # fmt: skip


class Seen(NamedTuple):
    """An image of the policy, with its encoder.

    Attributes:
        key: the image and its encoder's settings.
        features: the number of the encoder's features.
        encoder: the encoder's tensors.
        normalized: the encoder's own normalisation of the pixels, after the normalizer's.
    """

    key: ImageKey
    features: int
    encoder: Mapping[str, Tensor]
    normalized: Statistics

    def field(self, found: Statistics) -> Statistics:
        """The normalisation (C,) of pixels in [0, 255]: the normalizer's of pixels in [0, 1], then the encoder's."""
        scale, offset, center = image_field(found, self.key.channels)
        own = self.normalized
        return Statistics(scale * own.scale, (offset - own.center) * own.scale + own.offset, center)


def observations(cfg: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Observation keys in the order of the condition -> (C, H, W) for an image, () for a vector.

    Policies on one vector `obs` have none. MultiImageObsEncoder sorts the keys, images first.
    """
    target = class_name(cfg, "policy", where)
    if target not in (HYBRID, MULTI_IMAGE):
        return {}
    found: dict[str, tuple[int, ...]] = {}
    described = setting(cfg, "policy.shape_meta.obs", where)
    check_count(described, where)
    for key, meta in described.items():
        kind = meta.get("type", "low_dim")
        if kind not in ("low_dim", "rgb"):
            raise CheckpointError(f"{where}: observation {key!r} is of type {kind}; expected low_dim or rgb.")
        found[key] = tuple(setting(meta, "shape", where)) if kind == "rgb" else ()
    if target == MULTI_IMAGE:
        return {key: found[key] for key in sorted(found, key=lambda key: (not found[key], key))}
    return found


def take_images(pool: TensorPool, cfg: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Seen]:
    """The images among the observations `shapes`, in order. Takes the tensors of their encoders.

    Raises:
        CheckpointError: if an encoder is of an unsupported kind; the message names the setting or the tensor.
    """
    images = {key: shape for key, shape in shapes.items() if shape}
    if class_name(cfg, "policy", where) == MULTI_IMAGE:
        return _multi_images(pool, setting(cfg, "policy.obs_encoder", where), images, where)
    return {key: _hybrid_image(pool, cfg, key, shape, where) for key, shape in images.items()}


def _hybrid_image(pool: TensorPool, cfg: Any, key: str, shape: tuple[int, ...], where: str) -> Seen:
    """An image with robomimic's VisualCore. real-stanford's code fixes the encoder's other settings."""
    taken = pool.take_all(f"obs_encoder.obs_nets.{key}.")
    channels, height, width = shape
    policy = {"crop_shape": (76, 76), "eval_fixed_crop": False} | setting(cfg, "policy", where)
    crop = setting(policy, "crop_shape", where)
    if crop and not setting(policy, "eval_fixed_crop", where):
        raise CheckpointError(f"{where} crops images at random even when it acts; expected eval_fixed_crop to be true.")
    place = central_crop((height, width), crop, round) if crop else ()
    encoder = visual_core(taken, f"{where}: the encoder of {key}")
    image, features = image_key(key, (channels, height, width), encoder, where, place)
    return Seen(image, features, encoder, Statistics.identity(channels))


def _multi_images(
    pool: TensorPool, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Seen]:
    """The images of a MultiImageObsEncoder with these settings."""
    kind, unknown = class_name(settings, "", where), sorted(set(settings) - set(ENCODER_SETTINGS))
    if kind != "MultiImageObsEncoder" or unknown:
        told = f" with {', '.join(unknown)}" if unknown else ""
        raise CheckpointError(f"{where}: images are encoded by {kind}{told}; expected MultiImageObsEncoder.")
    shared = flag(settings, "share_rgb_model", where)
    prefix = "obs_encoder.key_model_map."
    one = pool.take_all(f"{prefix}{SHARED}.") if shared else {}
    seen = {}
    for key, shape in shapes.items():
        taken = {name: value.clone() for name, value in one.items()} if shared else pool.take_all(f"{prefix}{key}.")
        seen[key] = _multi_image(key, shape, torchvision_resnet(taken), settings, where)
    return seen


def _multi_image(
    key: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], settings: Mapping[str, Any], where: str
) -> Seen:
    """An image of MultiImageObsEncoder: resized, cropped in the center, normalised as ImageNet's, encoded."""
    channels, height, width = shape
    resize, crop = (_size(settings, name, key, where) for name in ("resize_shape", "crop_shape"))
    resize = () if resize == (height, width) else resize
    if not flag({"random_crop": True} | dict(settings), "random_crop", where):
        crop = ()  # MultiImageObsEncoder then forgets its CenterCrop
    place = central_crop(resize or (height, width), crop, round) if crop else ()
    model = setting(settings, "rgb_model", where)
    if class_name(model, "", where) != "get_resnet" or set(model) - {"_target_", "name", "weights"}:
        raise CheckpointError(
            f"{where}: rgb_model is {str(model)[:200]}; expected get_resnet with a name, one for all images."
        )
    normalized = Statistics.identity(channels)
    if flag(settings, "imagenet_norm", where):
        if channels != len(IMAGENET_MEAN):
            raise CheckpointError(f"{where}: imagenet_norm needs images of 3 channels; {key!r} has {channels}.")
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
        normalized = Statistics(1 / std, torch.zeros(channels), mean)
    norm = "batch" if any(name.endswith("running_mean") for name in encoder) else "group"
    shape_last = (height, width, channels)
    # torchvision 0.13, which real-stanford's environment pins, resizes tensors without a filter
    image = ImageKey(
        key, shape_last, place, resize, setting(model, "name", where), norm, pool="average", antialias=not resize
    )
    last = [value.shape[0] for name, value in encoder.items() if name.startswith(LAST_LAYER) and value.ndim]
    if not last:
        raise CheckpointError(f"{where}: the encoder of {key!r} has no layer4; expected a ResNet of torchvision.")
    return Seen(image, max(last), encoder, normalized)


def _size(settings: Mapping[str, Any], name: str, key: str, where: str) -> tuple[int, ...]:
    """A height and width, given for all images or for each; () for none."""
    value = setting(settings, (name,), where) if name in settings else None
    if isinstance(value, Mapping):
        value = setting(value, (key,), where)
    return tuple(value) if value else ()
