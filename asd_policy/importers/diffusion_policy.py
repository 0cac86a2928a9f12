"""real-stanford (https://github.com/real-stanford/diffusion_policy): reads `.ckpt` files.

Policies with a U-Net, a transformer, or a U-Net on images. The file is a pickle made with dill, which
`asd_policy.importers.restricted` reads without running its code. The pickles inside it (`pickles`) are never opened,
and the interpolations in its configuration are never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers import robots
from asd_policy.importers.checkpoint import FIELDS, Checkpoint, affine_field, field_name
from asd_policy.importers.files import TensorPool, check_count, entry
from asd_policy.importers.format import Format
from asd_policy.importers.lazy_tensors import TensorReader
from asd_policy.importers.network_sizes import Sizes, check_claims, transformer_sizes, unet_sizes
from asd_policy.importers.restricted import plain, read_restricted
from asd_policy.importers.schedulers import read_scheduler
from asd_policy.importers.statistics import Statistics, check_finite, check_spread, numbers
from asd_policy.importers.torch_file import TorchFile, unpickle_trusted
from asd_policy.importers.vision import encoder_prefix, encoder_tensors, image_field, image_key, visual_core
from asd_policy.policies.actions import POSE_ARM, POSE_ARM_DIM, ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey, central_crop
from asd_policy.policies.tasks import env_id

NAME = "diffusion_policy"
OLD_ROBOSUITE = (1, 2)  # the version in which these policies were trained
UNET, TRANSFORMER = "DiffusionUnetLowdimPolicy", "DiffusionTransformerLowdimPolicy"
HYBRID = "DiffusionUnetHybridImagePolicy"
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    UNET: {"obs_as_global_cond": True, "pred_action_steps_only": False, "oa_step_convention": True},
    TRANSFORMER: {
        "obs_as_cond": True,
        "pred_action_steps_only": False,
        "model.obs_as_cond": True,
        "model.time_as_cond": True,
        "model.n_cond_layers": 0,
    },
    HYBRID: {"obs_as_global_cond": True},
}
"""Policy class -> the settings in its configuration that are supported."""

ROTATION = "rotation_6d"
ROBOMIMIC_TASKS = ("lift", "can", "square", "transport", "tool_hang")
DUMMIES = ("_dummy_variable", "model._dummy_variable", "mask_generator._dummy_variable")  # empty: they carry a device


def read(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Read a `.ckpt`: the EMA weights if the policy was trained with them.

    Args:
        trust_pickle: run the pickle with dill, including any code in it.

    Raises:
        UnsafeFileError: if the pickle asks for anything but tensors, containers and configuration.
        CheckpointError: if the file is damaged, or holds a policy of an unsupported kind.
    """
    file = TorchFile.open(path)
    payload = _unpickle_trusted(path) if trust_pickle else read_restricted(file)
    where = str(path)
    cfg = _plain_cfg(entry(payload, "cfg", where), where)
    _check_supported(cfg, where)
    name = "ema_model" if _flag(entry(cfg, "training", where), "use_ema", where, required=True) else "model"
    states = entry(payload, "state_dicts", where)
    if name == "ema_model" and isinstance(states, Mapping) and name not in states:
        raise CheckpointError(f"{where} was trained with averaged weights (training.use_ema), but holds none.")
    state = TensorReader(file).read_all(entry(states, name, f"{where}: state_dicts"))
    images = _images(cfg, where)
    tensors = _take_tensors(TensorPool(state, f"{where} ({name})"), [*images] or ["obs"])
    return _checkpoint(path, cfg, tensors, {key: shape for key, shape in images.items() if shape})


def _plain_cfg(cfg: Any, where: str) -> Any:
    """The configuration as plain values. In a trusted file it is an OmegaConf object."""
    if hasattr(cfg, "_content"):
        from omegaconf import OmegaConf

        cfg = OmegaConf.to_container(cfg, resolve=False)
    return plain(cfg, f"{where}: cfg")


def _check_supported(cfg: Any, where: str) -> None:
    target = _target(cfg, where)
    if target not in REQUIRED:
        raise CheckpointError(f"{where} holds a {target}; expected {', '.join(REQUIRED)}.")
    found = {name: _value(cfg, f"policy.{name}", where) for name in REQUIRED[target]}
    wrong = {name: value for name, value in found.items() if value != REQUIRED[target][name]}
    if wrong:
        raise CheckpointError(f"{where} was trained with {wrong}, which is not supported.")
    latency = cfg.get("n_latency_steps") or 0
    if latency != 0:  # real-stanford's runners drop that many of the policy's actions
        raise CheckpointError(f"{where} was trained for n_latency_steps = {latency!s:.100}; only 0 is supported.")


def _target(cfg: Any, where: str) -> str:
    return str(_value(cfg, "policy._target_", where)).rpartition(".")[2]


def _images(cfg: Any, where: str) -> dict[str, tuple[int, ...]]:
    """Observation keys of a hybrid policy in order -> (C, H, W) for an image, () for a vector. Empty for others."""
    if _target(cfg, where) != HYBRID:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    observations = _value(cfg, "policy.shape_meta.obs", where)
    check_count(observations, where)
    for key, meta in observations.items():
        kind = meta.get("type", "low_dim")
        if kind not in ("low_dim", "rgb"):
            raise CheckpointError(f"{where}: observation {key!r} is of type {kind}; expected low_dim or rgb.")
        found[key] = tuple(_value(meta, "shape", where)) if kind == "rgb" else ()
    return found


def _image(
    key: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], cfg: Any, where: str
) -> tuple[ImageKey, int]:
    """The image and its number of features. real-stanford's code fixes the encoder's other settings."""
    channels, height, width = shape
    defaults = {"crop_shape": (76, 76), "eval_fixed_crop": False}
    policy = defaults | _value(cfg, "policy", where)
    crop = _value(policy, "crop_shape", where)
    if crop and not _value(policy, "eval_fixed_crop", where):
        raise CheckpointError(f"{where} crops images at random even when it acts; expected eval_fixed_crop to be true.")
    place = central_crop((height, width), crop, round) if crop else ()
    return image_key(key, (channels, height, width), encoder, where, place)


def _sizes(cfg: Any, network: Mapping[str, Any], where: str) -> Sizes:
    """The network's sizes from its tensors, which must agree with the configuration."""
    target = _target(cfg, where)
    model = _value(cfg, "policy" if target == HYBRID else "policy.model", where)
    if target == TRANSFORMER:
        sizes = transformer_sizes(network, _value(model, "n_head", where), where)
    else:
        sizes = unet_sizes(network, model.get("n_groups", 8), where)
    claims = {field.name: model[field.name] for field in fields(sizes.network) if field.name in model}
    check_claims(sizes.network, claims, where)
    return sizes


def _take_tensors(pool: TensorPool, keys: Sequence[str]) -> dict[str, Any]:
    """All tensors under native names: networks, and a normalizer with a field for each key and for the action."""
    for prefix in DUMMIES:
        pool.take_all(prefix)
    tensors = {f"model.{name}": value for name, value in pool.take_all("model.").items()}
    for key in keys:
        tensors |= encoder_tensors(key, pool.take_all(f"obs_encoder.obs_nets.{key}."))
    for field in (*keys, "action"):
        for kind in ("scale", "offset"):
            tensors[field_name(field, kind)] = pool.take(f"normalizer.params_dict.{field}.{kind}")
        pool.take_all(f"normalizer.params_dict.{field}.input_stats.")  # redundant with scale and offset
    pool.finish()
    return tensors


def _checkpoint(
    path: Path, cfg: Any, tensors: dict[str, Tensor], image_shapes: Mapping[str, tuple[int, ...]]
) -> Checkpoint:
    where = str(path)
    sizes = _sizes(cfg, _below("model.", tensors), where)
    encoders = {
        key: visual_core(_below(encoder_prefix(key), tensors), f"{where}: the encoder of {key}") for key in image_shapes
    }
    images = {key: _image(key, image_shapes[key], encoder, cfg, where) for key, encoder in encoders.items()}
    policy, task = _value(cfg, "policy", where), cfg.get("task") or {}
    name = str(task.get("task_name", task.get("name", "unknown")))
    absolute = _flag(task, "abs_action", where)
    poses = absolute and _has_rotations(task, name, where)
    env = env_id(name, "world" if poses else None) if poses or not absolute else name
    scheduler, notes = _scheduler(policy, where)
    native = {f"model.{name}": value for name, value in _below("model.", tensors).items()}
    for key, encoder in encoders.items():
        native |= encoder_tensors(key, encoder)
    found = _statistics(tensors, where)
    for field, values in found.items():
        native |= affine_field(field, *(image_field(values, image_shapes[field][0]) if field in images else values))
    obs_keys = {
        key: images[key][1] if key in images else len(values.scale) for key, values in found.items() if key != "action"
    }
    config = PolicyConfig(
        env_id=env,
        obs_keys=obs_keys,
        action_dim=sizes.action_dim,
        n_obs_steps=_value(policy, "n_obs_steps", where),
        horizon=_value(policy, "horizon", where),
        n_action_steps=_value(policy, "n_action_steps", where),
        action_bound=robots.action_bound(env),
        network=sizes.network,
        scheduler=scheduler,
        action_parts=_action_parts(sizes.action_dim, where) if poses else (),
        images=tuple(image for image, _ in images.values()),
    )
    notes += robots.version_notes(env, OLD_ROBOSUITE)
    if poses and env == name:
        notes += (robots.POSES_ELSEWHERE,)
    checkpoint = Checkpoint(path, NAME, config, native, notes)
    keys = task.get("obs_keys") if "obs" in obs_keys else None
    return checkpoint.with_obs_keys(robots.split_observation(keys, obs_keys["obs"], where)) if keys else checkpoint


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix; the returned names lack it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _statistics(tensors: Mapping[str, Tensor], where: str) -> dict[str, Statistics]:
    """The normalisation x * scale + offset of each field, in order."""
    found = {}
    for name, scale in _below(FIELDS, tensors).items():
        key, _, kind = name.rpartition(".")
        if kind != "scale":
            continue
        field = unquote(key)
        offset = tensors[f"{FIELDS}{key}.offset"]
        if scale.ndim != 1 or scale.shape != offset.shape:
            shapes = f"{tuple(scale.shape)} and {tuple(offset.shape)}"
            raise CheckpointError(f"{where}: the normalisation of {field!r} has shapes {shapes}; expected vectors.")
        scale, offset = numbers(scale, field, where), numbers(offset, field, where)
        check_finite({"scale": scale, "offset": offset}, field, where)
        check_spread(scale, "scale", field, where, may_be_zero=field != "action")
        found[field] = Statistics(scale, offset, torch.zeros_like(scale))
    return found


def _scheduler(policy: Mapping[str, Any], where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    settings = _value(policy, "noise_scheduler", where)
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{where}: its noise_scheduler is {type(settings).__name__}; expected settings.")
    values = {key: _value(settings, (key,), where) for key in settings if key != "_target_"}
    name = str(settings.get("_target_", "")).rpartition(".")[2]
    steps = _value(policy, "num_inference_steps", where) if "num_inference_steps" in policy else None
    return read_scheduler(name, values, steps, where)


def _flag(settings: Mapping[str, Any], name: str, where: str, required: bool = False) -> bool:
    """A boolean setting. A null, or a missing one that is not required, counts as false."""
    value = _value(settings, (name,), where) if required or name in settings else False
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} is {value!r:.200}; expected true or false.")
    return bool(value)


def _has_rotations(task: Mapping[str, Any], name: str, where: str) -> bool:
    """Whether absolute actions are poses with 6-D rotations, as in real-stanford's robomimic tasks.

    Its other tasks with absolute actions (kitchen, block pushing) use joints or positions. The task's runner and data
    set decide; without either, the task's name does.
    """
    runner, dataset = (task.get(part) or {} for part in ("env_runner", "dataset"))
    representation = dataset.get("rotation_rep", ROTATION)
    targets = [str(part["_target_"]) for part in (runner, dataset) if "_target_" in part]
    poses = any("robomimic" in target.lower() for target in targets) if targets else name in ROBOMIMIC_TASKS
    if poses and representation != ROTATION:
        raise CheckpointError(f"{where}: rotations are {representation!r:.100}, which is not supported but {ROTATION}.")
    return poses


def _action_parts(dim: int, where: str) -> tuple[ActionPart, ...]:
    if dim % POSE_ARM_DIM:
        raise CheckpointError(f"{where}: absolute poses of {dim} entries; expected {POSE_ARM_DIM} per arm.")
    return POSE_ARM * (dim // POSE_ARM_DIM)


def _value(cfg: Any, path: str | tuple[str, ...], where: str) -> Any:
    """An entry of the configuration. Interpolations are refused: evaluating them could run code."""
    value = entry(cfg, path, where)
    if isinstance(value, str) and "${" in value:
        name = path if isinstance(path, str) else ".".join(path)
        raise CheckpointError(
            f"{where}: {name} is the unresolved {value[:200]!r}; such strings are never evaluated here."
        )
    return value


def _unpickle_trusted(path: Path) -> Any:
    """Load the file with dill, which runs any code in it."""
    import dill

    return unpickle_trusted(path, dill)


FORMAT = Format(
    name=NAME,
    place="file",
    marks=frozenset({"cfg", "state_dicts", "pickles"}),
    read=read,
    read_trusted=partial(read, trust_pickle=True),
)
