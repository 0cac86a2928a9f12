"""Checkpoints of https://github.com/ARISE-Initiative/robomimic 0.5, `*.pth`: DiffusionPolicyUNet, on images too."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import CheckpointError, UnsafeFileError
from asd_policy.importers import robots
from asd_policy.importers.checkpoint import Checkpoint, affine_field
from asd_policy.importers.files import TensorPool, entry, json_object
from asd_policy.importers.network_sizes import unet_sizes
from asd_policy.importers.torch_file import TorchFile
from asd_policy.importers.vision import encoder_tensors, image_field, image_key, visual_core
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey, central_crop
from asd_policy.policies.tasks import env_id

FORMAT = "robomimic"
N_GROUPS = 8  # robomimic builds its U-Net with the default, whatever the config says
NETWORK = "policy.noise_pred_net."
OBS_NETS = "policy.obs_encoder.nets.obs.obs_nets."
BACKBONES = {"ResNet18Conv": "resnet18", "ResNet50Conv": "resnet50"}
# The training loop's best scores may be numpy's numbers; these rebuild numbers and nothing else.
_rebuild_number = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [
    (_rebuild_number, "numpy.core.multiarray.scalar"),
    (_rebuild_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


def read(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """The policy in a `.pth`: its averaged weights, where it was trained with an average.

    Raises:
        UnsafeFileError: if the file asks for more than tensors and plain values.
        CheckpointError: if it is damaged, or a policy of a kind that is not supported.
    """
    TorchFile.open(path).strings()  # refuses what is no complete, honest torch file
    payload = _load(path, trust_pickle)
    where = str(path)
    algorithm = entry(payload, "algo_name", where)
    if algorithm != "diffusion_policy":
        raise CheckpointError(f"{where} holds a robomimic policy of kind {algorithm!r}; expected 'diffusion_policy'.")
    config = json_object(entry(payload, "config", where), f"{where}: config")
    averaged = entry(payload, "model", where).get("ema")
    state = entry(payload, "model.nets", where) if averaged is None else averaged
    pool = TensorPool(state, f"{where} ({'nets' if averaged is None else 'ema'})")
    tensors = {f"model.{name}": value for name, value in pool.take_all(NETWORK).items()}
    shapes = _obs_shapes(payload, where)
    encoders = {
        key: visual_core(pool.take_all(f"{OBS_NETS}{key}."), f"{where}: the encoder of {key}")
        for key, shape in shapes.items()
        if len(shape) == 3
    }
    pool.finish()
    return _checkpoint(path, payload, config, tensors, shapes, encoders)


def _load(path: Path, trust_pickle: bool) -> Any:
    try:
        with torch.serialization.safe_globals(NUMBERS):
            # Memory-mapped: the optimizer's state, twice the weights, is not read.
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|global) (\S+)", str(error))
        raise UnsafeFileError(path, wanted[1] if wanted else f"something that is not allowed ({error})") from error
    except Exception as error:  # torch's reader of archives raises RuntimeError and more on damaged ones
        raise CheckpointError(f"Cannot read {path}: {error!r}. Is the file complete?") from error


def _checkpoint(
    path: Path,
    payload: Any,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    encoders: Mapping[str, Mapping[str, Tensor]],
) -> Checkpoint:
    where = str(path)
    sizes = unet_sizes({name.removeprefix("model."): value for name, value in tensors.items()}, N_GROUPS, where)
    images = {key: _image(key, shapes[key], encoder, config, where) for key, encoder in encoders.items()}
    obs_keys = {key: images[key][1] if key in images else shape[0] for key, shape in shapes.items()}
    for key, encoder in encoders.items():
        tensors |= encoder_tensors(key, encoder)
    tensors |= _obs_normaliser(payload, shapes, where)
    parts, action_dims, absolute = _actions(config, payload, sizes.action_dim, where)
    tensors |= _action_normaliser(payload, action_dims, where)
    scheduler, notes = _scheduler(entry(config, "algo", where), where)
    metadata = entry(payload, "env_metadata", where)
    version = _robosuite_version(metadata)
    frame = "base" if version >= robots.NEW_CONTROLLERS else "world"
    env = env_id(str(entry(metadata, "env_name", where)), frame if absolute else None)
    policy = PolicyConfig(
        env_id=env,
        obs_keys=obs_keys,
        action_dim=sizes.action_dim,
        n_obs_steps=entry(config, "algo.horizon.observation_horizon", where),
        horizon=entry(config, "algo.horizon.prediction_horizon", where),
        n_action_steps=entry(config, "algo.horizon.action_horizon", where),
        action_bound=robots.action_bound(env),
        network=sizes.network,
        scheduler=scheduler,
        action_parts=parts,
        images=tuple(image for image, _ in images.values()),
    )
    return Checkpoint(path, FORMAT, policy, tensors, notes + (robots.pose_notes(env, version) if absolute else ()))


def _robosuite_version(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Major and minor; robomimic 0.5 writes it, and is used with 1.5."""
    found = re.match(r"(\d+)\.(\d+)", str(metadata.get("env_version", "")))
    return (int(found[1]), int(found[2])) if found else robots.NEW_CONTROLLERS


def _obs_shapes(payload: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Observation keys in the order in which robomimic concatenates them: (D,), of images (C, H, W)."""
    shapes = entry(payload, "shape_metadata.all_shapes", where)
    found = {key: tuple(shapes.get(key, ())) for key in sorted(entry(payload, "shape_metadata.all_obs_keys", where))}
    for key, shape in found.items():
        if len(shape) not in (1, 3):
            raise CheckpointError(f"{where}: observation {key!r} has shape {shape}; expected a vector or an image.")
    return found


def _image(
    key: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], config: dict[str, Any], where: str
) -> tuple[ImageKey, int]:
    """The image and the number of its features, as the configuration of robomimic's encoders says."""
    if key not in entry(config, "observation.modalities.obs.rgb", where):
        raise CheckpointError(f"{where}: {key!r} is an image, but not of colours; only those (rgb) are supported.")
    settings = entry(config, "observation.encoder.rgb", where)
    kwargs, randomizer = settings.get("core_kwargs") or {}, settings.get("obs_randomizer_class")
    backbone = kwargs.get("backbone_class", "ResNet18Conv")
    coordinates = (kwargs.get("backbone_kwargs") or {}).get("input_coord_conv", False)
    if backbone not in BACKBONES or coordinates or randomizer not in (None, "CropRandomizer"):
        raise CheckpointError(
            f"{where}: images are encoded by {backbone} after {randomizer}{', with coordinates' * bool(coordinates)}; "
            f"expected {' or '.join(BACKBONES)} without coordinates, and CropRandomizer or nothing before it."
        )
    channels, height, width = shape
    crop = settings.get("obs_randomizer_kwargs") or {}
    size = (crop["crop_height"], crop["crop_width"]) if randomizer else None
    place = central_crop((height, width), size) if size else ()
    return image_key(key, (channels, height, width), encoder, where, place, backbone=BACKBONES[backbone])


def _affine(stats: Mapping[str, Any], key: str, dim: int, where: str) -> tuple[Tensor, Tensor]:
    """robomimic's (x - offset) / scale as scale and offset of x * scale + offset, each (D,) float64."""
    found = entry(stats, key, where)
    values = [torch.tensor(found[name], dtype=torch.float64) for name in ("scale", "offset")]
    if any(value.shape != (1, dim) for value in values):
        raise CheckpointError(
            f"{where}: normalisation of {key!r} has shape {tuple(values[0].shape)}; expected (1, {dim})."
        )
    scale, offset = values[0][0], values[1][0]
    return 1 / scale, -offset / scale


def _obs_normaliser(payload: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Tensor]:
    stats = payload.get("obs_normalization_stats")
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        dim, image = shape[0], len(shape) == 3
        if image and stats is not None:
            raise CheckpointError(f"{where}: {key!r} is normalised pixel by pixel, which is not supported.")
        affine = (torch.ones(dim), torch.zeros(dim)) if stats is None else _affine(stats, key, dim, where)
        tensors |= affine_field(key, *(image_field(*affine, dim) if image else affine))
    return tensors


def _action_normaliser(payload: Any, dims: Mapping[str, int], where: str) -> dict[str, Tensor]:
    stats = payload.get("action_normalization_stats")
    if stats is None:
        total = sum(dims.values())
        return affine_field("action", torch.ones(total), torch.zeros(total))
    pieces = [_affine(stats, key, dim, where) for key, dim in dims.items()]
    return affine_field(
        "action", torch.cat([scale for scale, _ in pieces]), torch.cat([offset for _, offset in pieces])
    )


def _actions(
    config: dict[str, Any], payload: Any, action_dim: int, where: str
) -> tuple[tuple[ActionPart, ...], dict[str, int], bool]:
    """How actions are composed: parts, sizes by key in order, and whether they are absolute poses."""
    train = entry(config, "train", where)
    keys: list[str] = train.get("action_keys", ["actions"])  # robomimic 0.3 has neither
    settings = train.get("action_config", {})
    stats = payload.get("action_normalization_stats")
    if stats is None and len(keys) > 1:
        raise CheckpointError(f"{where} has actions {keys} but no action_normalization_stats to tell their sizes.")
    dims = {key: action_dim if stats is None else len(entry(stats, key, where)["offset"][0]) for key in keys}
    if sum(dims.values()) != action_dim:
        raise CheckpointError(f"{where}: actions {dims} do not add up to the network's {action_dim}.")
    rotated = {key for key in keys if (settings.get(key) or {}).get("format") == "rot_6d"}
    other = {key for key in rotated if settings[key].get("convert_at_runtime", "rot_axis_angle") != "rot_axis_angle"}
    if other:
        raise CheckpointError(f"{where}: {sorted(other)} become Euler angles at rollout, which is not supported.")
    parts = (
        tuple(ActionPart("rot6d" if key in rotated else "keep", dim) for key, dim in dims.items()) if rotated else ()
    )
    return parts, dims, any("abs" in key.rpartition("/")[2].split("_") for key in keys)


def _scheduler(algo: Any, where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    name = "ddpm" if entry(algo, "ddpm.enabled", where) else "ddim"
    values = entry(algo, name, where)
    total = entry(values, "num_train_timesteps", where)
    scheduler = SchedulerConfig(
        num_train_timesteps=total,
        beta_schedule=entry(values, "beta_schedule", where),
        clip_sample=entry(values, "clip_sample", where),
        prediction_type=entry(values, "prediction_type", where),
    )
    return scheduler, robots.scheduler_notes(name.upper(), entry(values, "num_inference_timesteps", where), total)
