"""Checkpoints of https://github.com/real-stanford/diffusion_policy, `*.ckpt`: low-dimensional U-Net and transformer.

The file is a pickle made with dill. It is read by `asd_policy.importers.restricted`, which runs none of its code; what
is pickled inside of it once more (`pickles`) is never opened, and the configuration's strings are never evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from asd_policy.errors import CheckpointError
from asd_policy.importers import robots
from asd_policy.importers.checkpoint import Checkpoint, affine_field
from asd_policy.importers.files import TensorPool, entry
from asd_policy.importers.network_sizes import Sizes, check_claims, transformer_sizes, unet_sizes
from asd_policy.importers.restricted import LazyTensor, plain_config, read_restricted
from asd_policy.importers.torch_file import TorchFile
from asd_policy.policies.actions import POSE_ARM, POSE_ARM_DIM, ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.tasks import env_id

FORMAT = "diffusion_policy"
OLD_ROBOSUITE = (1, 2)  # which these policies were trained with
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
}
"""Policy -> the settings of its configuration that are supported."""

DUMMIES = ("_dummy_variable", "model._dummy_variable", "mask_generator._dummy_variable")  # empty: they carry a device


def read(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """The policy in a `.ckpt`: its averaged weights, where it was trained with an average.

    Raises:
        UnsafeFileError: if the pickle wants to build anything but tensors, containers and configuration.
        CheckpointError: if it is damaged, or a policy of a kind that is not supported.
    """
    file = TorchFile.open(path)
    payload = _unpickle_trusted(path) if trust_pickle else read_restricted(file)
    where = str(path)
    cfg = plain_config(entry(payload, "cfg", where), where)
    _check_supported(cfg, where)
    name = "ema_model" if _value(cfg, "training.use_ema", where) else "model"
    state: Mapping[str, Any] = entry(payload, f"state_dicts.{name}", where)
    pool = TensorPool(state, f"{where} ({name})")
    tensors = _take_tensors(pool)
    tensors = {key: value.read(file) if isinstance(value, LazyTensor) else value for key, value in tensors.items()}
    return _checkpoint(path, cfg, tensors)


def _check_supported(cfg: Any, where: str) -> None:
    target = _target(cfg, where)
    if target not in REQUIRED:
        expected = "image policies are not supported yet" if "Image" in target else f"expected {' or '.join(REQUIRED)}"
        raise CheckpointError(f"{where} holds a {target}; {expected}.")
    found = {name: _value(cfg, f"policy.{name}", where) for name in REQUIRED[target]}
    wrong = {name: value for name, value in found.items() if value != REQUIRED[target][name]}
    if wrong:
        raise CheckpointError(f"{where} was trained with {wrong}, which is not supported.")


def _target(cfg: Any, where: str) -> str:
    return str(_value(cfg, "policy._target_", where)).rpartition(".")[2]


def _sizes(cfg: Any, network: Mapping[str, Any], where: str) -> Sizes:
    """The network's sizes, which must be those that the configuration claims."""
    model = _value(cfg, "policy.model", where)
    if _target(cfg, where) == UNET:
        sizes = unet_sizes(network, model.get("n_groups", 8), where)
    else:
        sizes = transformer_sizes(network, _value(model, "n_head", where), where)
    claims = {field.name: model[field.name] for field in fields(sizes.network) if field.name in model}
    check_claims(sizes.network, claims, where)
    return sizes


def _take_tensors(pool: TensorPool) -> dict[str, Any]:
    """Network and normaliser under native names, the observation in one field; nothing of the pool is left."""
    pool.refuse("obs_encoder.")
    for prefix in DUMMIES:
        pool.take_all(prefix)
    tensors = {f"model.{name}": value for name, value in pool.take_all("model.").items()}
    for field in ("obs", "action"):
        for kind in ("scale", "offset"):
            tensors[f"normalizer.fields.{field}.{kind}"] = pool.take(f"normalizer.params_dict.{field}.{kind}")
        pool.take_all(f"normalizer.params_dict.{field}.input_stats.")  # of the training data; scale and offset say it
    pool.finish()
    return tensors


def _checkpoint(path: Path, cfg: Any, tensors: dict[str, Any]) -> Checkpoint:
    where = str(path)
    network = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    sizes = _sizes(cfg, network, where)
    policy, task = _value(cfg, "policy", where), cfg.get("task", {})
    absolute = bool(task.get("abs_action", False))
    name = str(task.get("task_name", task.get("name", "unknown")))
    env = env_id(name, "world" if absolute else None)
    scheduler, notes = _scheduler(policy, where)
    obs_dim = len(tensors["normalizer.fields.obs.scale"])
    config = PolicyConfig(
        env_id=env,
        obs_keys={"obs": obs_dim},
        action_dim=sizes.action_dim,
        n_obs_steps=_value(policy, "n_obs_steps", where),
        horizon=_value(policy, "horizon", where),
        n_action_steps=_value(policy, "n_action_steps", where),
        action_bound=robots.action_bound(env),
        network=sizes.network,
        scheduler=scheduler,
        action_parts=_action_parts(absolute, sizes.action_dim, where),
    )
    notes += robots.pose_notes(env, OLD_ROBOSUITE) if absolute else ()
    for field in ("obs", "action"):
        scale, offset = (tensors[f"normalizer.fields.{field}.{kind}"] for kind in ("scale", "offset"))
        tensors |= affine_field(field, scale, offset)
    checkpoint = Checkpoint(path, FORMAT, config, tensors, notes)
    keys = task.get("obs_keys")
    return checkpoint.with_obs_keys(robots.split_observation(keys, obs_dim, where)) if keys else checkpoint


def _scheduler(policy: Mapping[str, Any], where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    values = dict(_value(policy, "noise_scheduler", where))
    name = str(values.pop("_target_", "")).rpartition(".")[2]
    known = {field.name for field in fields(SchedulerConfig)}
    ignored = {"set_alpha_to_one", "steps_offset"} if "DDIM" in name else set()
    if not name.startswith(("DDPM", "DDIM")) or values.keys() - known - ignored:
        raise CheckpointError(f"{where}: scheduler {name} with {sorted(values.keys() - known)} is not supported.")
    defaults = {"beta_schedule": "linear", "num_train_timesteps": 1000}  # diffusers', not ours
    scheduler = SchedulerConfig(**(defaults | {key: value for key, value in values.items() if key in known}))
    notes = robots.scheduler_notes(name, policy.get("num_inference_steps"), scheduler.num_train_timesteps)
    return scheduler, notes


def _action_parts(absolute: bool, dim: int, where: str) -> tuple[ActionPart, ...]:
    if not absolute:
        return ()
    if dim % POSE_ARM_DIM:
        raise CheckpointError(f"{where}: absolute actions of {dim} entries; expected {POSE_ARM_DIM} per arm.")
    return POSE_ARM * (dim // POSE_ARM_DIM)


def _value(cfg: Any, path: str, where: str) -> Any:
    """An entry of the configuration that is no interpolation: those are code, and are not evaluated."""
    value = entry(cfg, path, where)
    if isinstance(value, str) and "${" in value:
        raise CheckpointError(f"{where}: {path} is the unresolved {value!r}; such strings are never evaluated here.")
    return value


def _unpickle_trusted(path: Path) -> Any:
    """Run the pickle, with whatever code is in it."""
    import dill
    import torch

    return torch.load(path, map_location="cpu", pickle_module=dill, weights_only=False)
