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
from asd_policy.importers.files import TensorPool, entry
from asd_policy.importers.format import Format
from asd_policy.importers.lazy_tensors import TensorReader
from asd_policy.importers.network_sizes import Sizes, check_claims, transformer_sizes, unet_sizes
from asd_policy.importers.restricted import plain, read_restricted
from asd_policy.importers.schedulers import read_scheduler
from asd_policy.importers.stanford_images import HYBRID, MULTI_IMAGE, UNFILTERED, Seen, observations, take_images
from asd_policy.importers.stanford_settings import class_name, flag, setting
from asd_policy.importers.statistics import Statistics, check_finite, check_spread, numbers
from asd_policy.importers.torch_file import TorchFile, unpickle_trusted
from asd_policy.importers.vision import encoder_tensors
from asd_policy.policies.actions import POSE_ARM, POSE_ARM_DIM, ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.tasks import env_id

NAME = "diffusion_policy"
OLD_ROBOSUITE = (1, 2)  # the version in which these policies were trained
UNET, TRANSFORMER = "DiffusionUnetLowdimPolicy", "DiffusionTransformerLowdimPolicy"
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
    MULTI_IMAGE: {"obs_as_global_cond": True},
}
"""Policy class -> the settings in its configuration that are supported."""

REFUSED = {
    "DiffusionUnetTimmPolicy": "its images are cropped and their colours changed at random even when it acts, and its "
    "chunk begins at the present observation: neither can be expressed here",
    "DiffusionTransformerHybridImagePolicy": "its transformer takes images",
}
"""Policy class -> why this package does not read it."""

ROTATION = "rotation_6d"
ROBOMIMIC_TASKS = ("lift", "can", "square", "transport", "tool_hang")
DUMMIES = tuple(  # empty tensors that carry a device
    f"{module}_dummy_variable" for module in ("", "model.", "mask_generator.", "obs_encoder.")
)


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
    name = "ema_model" if flag(entry(cfg, "training", where), "use_ema", where, required=True) else "model"
    states = entry(payload, "state_dicts", where)
    if name == "ema_model" and isinstance(states, Mapping) and name not in states:
        raise CheckpointError(f"{where} was trained with averaged weights (training.use_ema), but holds none.")
    state = TensorReader(file).read_all(entry(states, name, f"{where}: state_dicts"))
    shapes, pool = observations(cfg, where), TensorPool(state, f"{where} ({name})")
    images = take_images(pool, cfg, shapes, where)
    return _checkpoint(path, cfg, _take_tensors(pool, [*shapes] or ["obs"]), images)


def _plain_cfg(cfg: Any, where: str) -> Any:
    """The configuration as plain values. In a trusted file it is an OmegaConf object."""
    if hasattr(cfg, "_content"):
        from omegaconf import OmegaConf

        cfg = OmegaConf.to_container(cfg, resolve=False)
    return plain(cfg, f"{where}: cfg")


def _check_supported(cfg: Any, where: str) -> None:
    target = class_name(cfg, "policy", where)
    if target not in REQUIRED:
        why = f", which is not supported: {REFUSED[target]}" if target in REFUSED else ""
        raise CheckpointError(f"{where} holds a {target}{why}; expected {', '.join(REQUIRED)}.")
    found = {name: setting(cfg, f"policy.{name}", where) for name in REQUIRED[target]}
    wrong = {name: value for name, value in found.items() if value != REQUIRED[target][name]}
    if wrong:
        raise CheckpointError(f"{where} was trained with {wrong}, which is not supported.")
    latency = cfg.get("n_latency_steps") or 0
    if latency != 0:  # real-stanford's runners drop that many of the policy's actions
        raise CheckpointError(f"{where} was trained for n_latency_steps = {latency!s:.100}; only 0 is supported.")


def _sizes(cfg: Any, network: Mapping[str, Any], where: str) -> Sizes:
    """The network's sizes from its tensors, which must agree with the configuration."""
    target = class_name(cfg, "policy", where)
    model = setting(cfg, "policy" if target in (HYBRID, MULTI_IMAGE) else "policy.model", where)
    if target == TRANSFORMER:
        sizes = transformer_sizes(network, setting(model, "n_head", where), where)
    else:
        sizes = unet_sizes(network, model.get("n_groups", 8), where)
    claims = {field.name: model[field.name] for field in fields(sizes.network) if field.name in model}
    check_claims(sizes.network, claims, where)
    return sizes


def _take_tensors(pool: TensorPool, keys: Sequence[str]) -> dict[str, Any]:
    """The other tensors under native names: the network, and a normalizer with a field for each key and the action."""
    for prefix in DUMMIES:
        pool.take_all(prefix)
    tensors = {f"model.{name}": value for name, value in pool.take_all("model.").items()}
    for field in (*keys, "action"):
        for kind in ("scale", "offset"):
            tensors[field_name(field, kind)] = pool.take(f"normalizer.params_dict.{field}.{kind}")
        pool.take_all(f"normalizer.params_dict.{field}.input_stats.")  # redundant with scale and offset
    pool.finish()
    return tensors


def _checkpoint(path: Path, cfg: Any, tensors: dict[str, Tensor], images: Mapping[str, Seen]) -> Checkpoint:
    where = str(path)
    sizes = _sizes(cfg, _below("model.", tensors), where)
    policy, task = setting(cfg, "policy", where), cfg.get("task") or {}
    name = str(task.get("task_name", task.get("name", "unknown")))
    absolute = flag(task, "abs_action", where)
    poses = absolute and _has_rotations(task, name, where)
    env = env_id(name, "world" if poses else None) if poses or not absolute else name
    scheduler, notes = _scheduler(policy, where)
    native = {f"model.{name}": value for name, value in _below("model.", tensors).items()}
    for key, seen in images.items():
        native |= encoder_tensors(key, seen.encoder)
    found = _statistics(tensors, where)
    for field, values in found.items():
        native |= affine_field(field, *(images[field].field(values) if field in images else values))
    obs_keys = {
        key: images[key].features if key in images else len(values.scale)
        for key, values in found.items()
        if key != "action"
    }
    config = PolicyConfig(
        env_id=env,
        obs_keys=obs_keys,
        action_dim=sizes.action_dim,
        n_obs_steps=setting(policy, "n_obs_steps", where),
        horizon=setting(policy, "horizon", where),
        n_action_steps=setting(policy, "n_action_steps", where),
        action_bound=robots.action_bound(env),
        network=sizes.network,
        scheduler=scheduler,
        action_parts=_action_parts(sizes.action_dim, where) if poses else (),
        images=tuple(seen.key for seen in images.values()),
    )
    notes += robots.version_notes(env, OLD_ROBOSUITE)
    if poses and env == name:
        notes += (robots.POSES_ELSEWHERE,)
    if any(seen.key.resize for seen in images.values()):
        notes += (UNFILTERED,)
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
    settings = setting(policy, "noise_scheduler", where)
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{where}: its noise_scheduler is {type(settings).__name__}; expected settings.")
    values = {key: setting(settings, (key,), where) for key in settings if key != "_target_"}
    name = str(settings.get("_target_", "")).rpartition(".")[2]
    steps = setting(policy, "num_inference_steps", where) if "num_inference_steps" in policy else None
    return read_scheduler(name, values, steps, where)


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
