"""Writes lerobot folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint
from asd_policy.importers.expressing import require, require_common, spread_and_center, tensors_below
from asd_policy.importers.lerobot.reading import DEFAULT_EPS, IMAGES, SIDECAR, Sidecar
from asd_policy.importers.vision import PIXEL, encoder_prefix
from asd_policy.policies.config import NetworkConfig
from asd_policy.policies.image_keys import ImageKey, central_crop

MODES = {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX", "VISUAL": "MEAN_STD"}
ROUNDING = 0.01  # relative error of a range in float32 bounds, above which mean and deviation are written instead
STRIDE = 32  # image pixels per position of a ResNet's last feature map


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a lerobot folder.

    Vectors before the images become `observation.state`, vectors after them `observation.environment_state`. Without
    images the last vector becomes the latter. Fields that lerobot's files lack go into `asd_policy.json`.

    Raises:
        ConfigError: if lerobot cannot express the network, the scheduler, the images or the order of observations.
    """
    config = checkpoint.config
    require_common(config)
    variance = config.scheduler.variance_type
    require(variance == "fixed_small", "the variance", variance, "fixed_small")
    require(isinstance(config.network, NetworkConfig), "the network", config.network, "a temporal U-Net")
    state, images, environment = _split(checkpoint)
    stats = {"observation.state": _bounds(checkpoint, *state)}
    stats |= {f"{IMAGES}s.{image.key}": _pixels(checkpoint, image) for image in images}
    stats |= {"observation.environment_state": _bounds(checkpoint, *environment)} if environment else {}
    stats["action"] = _bounds(checkpoint, "action")
    folder.mkdir(parents=True, exist_ok=True)
    network = {
        f"diffusion.unet.{_unet_name(name)}": value for name, value in tensors_below(checkpoint, "model.").items()
    }
    for index, image in enumerate(images):
        encoder = _encoder(checkpoint, image)
        network |= {f"diffusion.rgb_encoder.{index}.{name}": value for name, value in encoder.items()}
    save_file(network, folder / WEIGHTS)
    features = {name: _feature(name, values, images) for name, values in stats.items()}
    modes = MODES | {features[name]["type"]: "MEAN_STD" for name, values in stats.items() if "mean" in values}
    _write(folder / CONFIG, _config(checkpoint, features, modes) | _vision(images))
    sidecar = Sidecar(config.env_id, dict(config.obs_keys), config.action_bound, config.action_parts)
    _write(folder / SIDECAR, asdict(sidecar))
    _write_processors(folder, stats, features, modes)


def _split(checkpoint: Checkpoint) -> tuple[list[str], list[ImageKey], list[str]]:
    """The keys of lerobot's state, the images, and the keys of lerobot's environment state."""
    config, images = checkpoint.config, {image.key: image for image in checkpoint.config.images}
    keys = list(config.obs_keys)
    first = next((place for place, key in enumerate(keys) if key in images), len(keys) - 1)
    after = first + len(images)
    state, seen, environment = keys[:first], [images[key] for key in keys[first:after] if key in images], keys[after:]
    order = len(seen) == len(images) and len(state) > 0
    require(order, "the order of observations", keys, "vectors, then images, then vectors; two keys at least")
    looks = {(image.shape, image.crop, image.backbone, image.norm, image.num_keypoints) for image in seen}
    pools = {image.pool for image in seen} - {"keypoints"}
    require(not pools, "images", f"with the pooling {', '.join(pools)}", "keypoints")
    require(len(looks) < 2, "images", seen, "images that are alike")
    for image in seen:
        central = not image.crop or image.crop == central_crop(image.shape[:2], image.crop[2:], round)
        require(central and not image.resize, "the crop and size of", image, "a central crop, not resized")
        width = config.obs_keys[image.key]
        require(width == 2 * image.num_keypoints, f"features of {image.key}", width, "two for each keypoint")
    return state, seen, environment


def _encoder(checkpoint: Checkpoint, image: ImageKey) -> dict[str, Tensor]:
    """The image's encoder under lerobot's names, with the coordinate grid of its spatial softmax."""
    tensors = tensors_below(checkpoint, encoder_prefix(image.key))
    height, width = (math.ceil(n / STRIDE) for n in image.crop[2:] or image.shape[:2])
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    return {name.replace("pool.conv.", "pool.nets."): value for name, value in tensors.items()} | {
        "pool.pos_grid": grid
    }


def _bounds(checkpoint: Checkpoint, *keys: str) -> dict[str, Tensor]:
    spread, center = spread_and_center(checkpoint, *keys)
    bounds = {"min": center - spread, "max": center + spread}
    if keys == ("action",):  # a constant action needs a deviation of 0, which lerobot's bounds cannot express
        return {"mean": center, "std": spread} if bool((spread == 0).any()) else bounds
    low, high = (bound.float().double() for bound in bounds.values())  # lerobot reads them in float32
    found = torch.where(low == high, DEFAULT_EPS, high - low)
    if torch.allclose(found, 2 * spread, rtol=ROUNDING, atol=0) or bool((spread < DEFAULT_EPS / 1.01).any()):
        return bounds
    return {"mean": center, "std": (spread - DEFAULT_EPS).clamp(min=0)}


def _pixels(checkpoint: Checkpoint, image: ImageKey) -> dict[str, Tensor]:
    """Mean and deviation of pixels from 0 to 1, each (C, 1, 1)."""
    spread, center = (value.view(-1, 1, 1) for value in spread_and_center(checkpoint, image.key))
    return {"mean": center / PIXEL, "std": (spread / PIXEL - DEFAULT_EPS).clamp(min=0)}


def _feature(name: str, values: dict[str, Tensor], images: Sequence[ImageKey]) -> dict[str, Any]:
    """The entry of an observation or of the action in lerobot's configuration."""
    kinds = {"observation.state": "STATE", "observation.environment_state": "ENV", "action": "ACTION"}
    if name in kinds:
        return {"type": kinds[name], "shape": list(next(iter(values.values())).shape)}
    height, width, channels = images[0].shape
    return {"type": "VISUAL", "shape": [channels, height, width]}


def _write_processors(
    folder: Path, stats: dict[str, dict[str, Tensor]], features: dict[str, Any], modes: dict[str, str]
) -> None:
    """Write lerobot's pipelines before and after the network, with their normalisation statistics."""
    tensors = {f"{key}.{name}": value for key, values in stats.items() for name, value in values.items()}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    for pipeline, step, around in (
        (
            "policy_preprocessor",
            "normalizer_processor",
            [{"registry_name": "to_batch_processor", "config": {}}, device],
        ),
        ("policy_postprocessor", "unnormalizer_processor", []),
    ):
        state_file = f"{pipeline}_step_{len(around)}_{step}.safetensors"
        save_file(tensors, folder / state_file)
        settings = {"eps": DEFAULT_EPS, "features": features, "norm_map": modes}
        steps = [*around, {"registry_name": step, "config": settings, "state_file": state_file}]
        _write(folder / f"{pipeline}.json", {"name": pipeline, "steps": steps})


def _config(checkpoint: Checkpoint, features: dict[str, Any], modes: dict[str, str]) -> dict[str, Any]:
    config, network, scheduler = checkpoint.config, checkpoint.config.network, checkpoint.config.scheduler
    assert isinstance(network, NetworkConfig)
    return {
        "type": "diffusion",
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "input_features": {name: feature for name, feature in features.items() if name != "action"},
        "output_features": {"action": features["action"]},
        "normalization_mapping": modes,
        "device": "cpu",
        "down_dims": list(network.down_dims),
        "kernel_size": network.kernel_size,
        "n_groups": network.n_groups,
        "diffusion_step_embed_dim": network.diffusion_step_embed_dim,
        "use_film_scale_modulation": network.cond_predict_scale,
        "noise_scheduler_type": "DDPM",
        "num_train_timesteps": scheduler.num_train_timesteps,
        "beta_schedule": scheduler.beta_schedule,
        "beta_start": scheduler.beta_start,
        "beta_end": scheduler.beta_end,
        "prediction_type": scheduler.prediction_type,
        "clip_sample": scheduler.clip_sample,
        "clip_sample_range": scheduler.clip_sample_range,
        "num_inference_steps": None,
    }


def _vision(images: Sequence[ImageKey]) -> dict[str, Any]:
    """The settings of image encoders in lerobot's configuration. Empty without images."""
    if not images:
        return {}
    image = images[0]
    return {
        "vision_backbone": image.backbone,
        "pretrained_backbone_weights": None,
        "resize_shape": None,
        "crop_ratio": 1.0,
        "crop_shape": list(image.crop[2:]) or None,
        "use_group_norm": image.norm == "group",
        "spatial_softmax_num_keypoints": image.num_keypoints,
        "use_separate_rgb_encoder_per_camera": True,
    }


def _unet_name(name: str) -> str:
    """lerobot's name of a tensor of our U-Net."""
    name = re.sub(r"\.blocks\.([01])\.block\.", lambda m: f".conv{int(m[1]) + 1}.block.", name)
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.conv\.", r"\1.", name)


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
