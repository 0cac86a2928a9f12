"""Reads robomimic's `.pth` files of DiffusionPolicyUNet, on vectors and on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError, DataError
from asd_policy.importers import robots
from asd_policy.importers.checkpoint import Checkpoint, affine_field
from asd_policy.importers.files import TensorPool, check_count, entry, json_object
from asd_policy.importers.lazy_tensors import TensorReader
from asd_policy.importers.network_sizes import unet_sizes
from asd_policy.importers.restricted import plain, read_restricted
from asd_policy.importers.schedulers import read_scheduler
from asd_policy.importers.statistics import Statistics, check_finite, check_spread, numbers, reciprocal
from asd_policy.importers.torch_file import TorchFile, unpickle_trusted
from asd_policy.importers.vision import encoder_tensors, image_field, image_key, visual_core
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey, central_crop
from asd_policy.policies.recording import ROBOSUITE, Recording
from asd_policy.policies.tasks import env_id

NAME = "robomimic"
N_GROUPS = 8  # robomimic ignores the config's number of groups and uses the default
NETWORK = "policy.noise_pred_net."
OBS_NETS = "policy.obs_encoder.nets.obs.obs_nets."
BACKBONES = {"ResNet18Conv": "resnet18", "ResNet50Conv": "resnet50"}
SCHEDULERS: Mapping[str, tuple[str, ...]] = {
    "ddpm": ("num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type"),
    "ddim": (
        "num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type", "set_alpha_to_one", "steps_offset",
    ),
}  # fmt: skip
UNUSED = ("model", "variable_state")  # the weights are read separately; the training state is not needed
CONTROLLED = "actions"
"""The action key that robomimic passes to the controller unchanged. Other keys name their kind, like `actions_abs`."""


def read(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Read a `.pth`: the EMA weights if it has any.

    Args:
        trust_pickle: run the pickle with torch.load, including any code in it.

    Raises:
        UnsafeFileError: if the pickle asks for more than tensors and plain values.
        CheckpointError: if the file is damaged, or holds a policy of an unsupported kind.
    """
    file = TorchFile.open(path)
    where = str(path)
    whole = unpickle_trusted(path) if trust_pickle else read_restricted(file)
    model = entry(whole, "model", where)
    payload = plain({key: value for key, value in whole.items() if key not in UNUSED}, where)
    algorithm = entry(payload, "algo_name", where)
    if algorithm != "diffusion_policy":
        raise CheckpointError(f"{where} holds a robomimic policy of kind {algorithm!r}; expected 'diffusion_policy'.")
    config = json_object(entry(payload, "config", where), f"{where}: config")
    averaged = model.get("ema") if isinstance(model, Mapping) else None
    state = entry(whole, "model.nets", where) if averaged is None else averaged
    pool = TensorPool(TensorReader(file).read_all(state), f"{where} ({'nets' if averaged is None else 'ema'})")
    tensors = {f"model.{name}": value for name, value in pool.take_all(NETWORK).items()}
    shapes = _obs_shapes(payload, where)
    encoders = {
        key: visual_core(pool.take_all(f"{OBS_NETS}{key}."), f"{where}: the encoder of {key}")
        for key, shape in shapes.items()
        if len(shape) == 3
    }
    pool.finish()
    return _checkpoint(path, payload, config, tensors, shapes, encoders)


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
    tensors |= _obs_normalizer(payload, shapes, where)
    keys = _action_keys(config, where)
    parts, action_dims = _actions(config, payload, keys, sizes.action_dim, where)
    tensors |= _action_normalizer(payload, action_dims, where)
    scheduler, notes = _scheduler(entry(config, "algo", where), where)
    env, env_notes = _environment(entry(payload, "env_metadata", where), keys, where)
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
    return Checkpoint(path, NAME, policy, tensors, notes + env_notes)


def _environment(metadata: Any, keys: list[str], where: str) -> tuple[str, tuple[str, ...]]:
    """The environment that takes the policy's actions, and notes on running the policy there.

    The controller in the metadata decides the kind of `actions`. Other action keys name their kind (`abs_pos`).
    """
    name = str(entry(metadata, "env_name", where))
    if metadata.get("type", ROBOSUITE) != ROBOSUITE:
        return name, ()
    try:
        recording = Recording.of({"env_kwargs": {}, **metadata}, where)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if any("abs" in key.rpartition("/")[2].split("_") for key in keys):
        absolute, env = True, recording.env_for(absolute=True)
    elif CONTROLLED in keys:
        absolute, env = recording.absolute, recording.env_id
    else:  # deltas computed by robomimic
        absolute, env = False, env_id(name) if recording.poses else name
    notes = robots.version_notes(env, recording.version)
    if absolute and not env.startswith("asd/"):
        notes += (robots.POSES_ELSEWHERE,)
    return env, notes + recording.controller_notes


def _obs_shapes(payload: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Observation shapes in the order in which robomimic concatenates them: (D,) or, for images, (C, H, W)."""
    shapes = entry(payload, "shape_metadata.all_shapes", where)
    found = {key: tuple(shapes.get(key, ())) for key in sorted(entry(payload, "shape_metadata.all_obs_keys", where))}
    check_count(found, where)
    for key, shape in found.items():
        if len(shape) not in (1, 3) or not all(type(size) is int and size > 0 for size in shape):
            raise CheckpointError(f"{where}: observation {key!r} has shape {shape}; expected a vector or an image.")
    return found


def _image(
    key: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], config: dict[str, Any], where: str
) -> tuple[ImageKey, int]:
    """The image and its number of features, from the configuration of robomimic's encoders."""
    if key not in entry(config, "observation.modalities.obs.rgb", where):
        raise CheckpointError(f"{where}: {key!r} is an image, but not of colours (rgb), which is not supported.")
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


def _statistics(stats: Any, key: str, dim: int, where: str, is_action: bool = False) -> Statistics:
    """robomimic's normalisation (x - offset) / scale. An action with scale 0 is always its offset."""
    scale, offset = (numbers(entry(stats, (key, name), where), key, where) for name in ("scale", "offset"))
    if scale.shape != (1, dim) or offset.shape != (1, dim):
        shapes = f"{tuple(scale.shape)} and {tuple(offset.shape)}"
        raise CheckpointError(f"{where}: normalisation of {key!r} has shapes {shapes}; expected (1, {dim}).")
    scale, offset = scale[0], offset[0]
    check_finite({"scale": scale, "offset": offset}, key, where)
    check_spread(scale, "scale", key, where, may_be_zero=is_action)
    return Statistics(reciprocal(scale), torch.zeros(dim), offset)


def _obs_normalizer(payload: Any, shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Tensor]:
    stats = payload.get("obs_normalization_stats")
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        dim, image = shape[0], len(shape) == 3
        if image and stats is not None:
            raise CheckpointError(f"{where}: {key!r} is normalised pixel by pixel, which is not supported.")
        found = Statistics.identity(dim) if stats is None else _statistics(stats, key, dim, where)
        tensors |= affine_field(key, *(image_field(found, dim) if image else found))
    return tensors


def _action_normalizer(payload: Any, dims: Mapping[str, int], where: str) -> dict[str, Tensor]:
    stats = payload.get("action_normalization_stats")
    if stats is None:
        return affine_field("action", *Statistics.identity(sum(dims.values())))
    pieces = [_statistics(stats, key, dim, where, is_action=True) for key, dim in dims.items()]
    return affine_field("action", *Statistics.joined(pieces))


def _action_keys(config: dict[str, Any], where: str) -> list[str]:
    keys = entry(config, "train", where).get("action_keys", [CONTROLLED])  # robomimic 0.3 has none
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{where}: its action_keys are {keys!r:.200}; expected names.")
    return keys


def _actions(
    config: dict[str, Any], payload: Any, keys: list[str], action_dim: int, where: str
) -> tuple[tuple[ActionPart, ...], dict[str, int]]:
    """The parts of an action, and the size of each action key in order."""
    settings = entry(config, "train", where).get("action_config") or {}
    stats = payload.get("action_normalization_stats")
    if stats is None and len(keys) > 1:
        raise CheckpointError(f"{where} has actions {keys} but no action_normalization_stats to tell their sizes.")
    dims = {key: action_dim if stats is None else len(entry(stats, (key, "offset"), where)[0]) for key in keys}
    if sum(dims.values()) != action_dim:
        raise CheckpointError(f"{where}: actions {dims} do not add up to the network's {action_dim}.")
    rotated = {key for key in keys if (settings.get(key) or {}).get("format") == "rot_6d"}
    other = {key for key in rotated if settings[key].get("convert_at_runtime", "rot_axis_angle") != "rot_axis_angle"}
    if other:
        raise CheckpointError(f"{where}: {sorted(other)} become Euler angles at rollout, which is not supported.")
    parts = (
        tuple(ActionPart("rot6d" if key in rotated else "keep", dim) for key, dim in dims.items()) if rotated else ()
    )
    return parts, dims


def _scheduler(algo: Any, where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    """The scheduler from the settings that robomimic passes to diffusers. robomimic ignores all others."""
    name = next((kind for kind in SCHEDULERS if entry(algo, f"{kind}.enabled", where)), None)
    if name is None:
        raise CheckpointError(f"{where} enables neither {' nor '.join(SCHEDULERS)}; expected one of them.")
    values = {setting: entry(algo, f"{name}.{setting}", where) for setting in SCHEDULERS[name]}
    return read_scheduler(name.upper(), values, entry(algo, f"{name}.num_inference_timesteps", where), where)
