"""Writes robomimic's `.pth` files of policies on vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.importers import robots
from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.importers.expressing import require, require_common, spread_and_center, tensors_below
from asd_policy.importers.robomimic.reading import NETWORK
from asd_policy.nets import NetworkConfig
from asd_policy.policies.config import SchedulerConfig
from asd_policy.policies.recording import COMPOSITE, POSE_CONTROLLER, ROBOSUITE
from asd_policy.policies.scheduler_config import SAMPLING
from asd_policy.policies.tasks import ENV_IDS, POSES, env_id, takes_poses

ROBOMIMIC_NETWORK = NetworkConfig(down_dims=(256, 512, 1024), kernel_size=5, n_groups=8, diffusion_step_embed_dim=256)
"""The only network that robomimic builds."""


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write a robomimic `.pth`. Needs robomimic installed, for its default configuration.

    Raises:
        ConfigError: if robomimic cannot express the network, the scheduler or the order of observations.
    """
    config = checkpoint.config
    free = ("num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type", *SAMPLING)
    fixed = {name: value for name, value in asdict(SchedulerConfig()).items() if name not in free}
    require_common(config)
    require(not config.images, "observations", "with images", "vectors")
    require(config.network == ROBOMIMIC_NETWORK, "the network", config.network, ROBOMIMIC_NETWORK)
    require(fixed.items() <= asdict(config.scheduler).items(), "the scheduler", config.scheduler, fixed)
    require(
        list(config.obs_keys) == sorted(config.obs_keys), "the order of observations", list(config.obs_keys), "sorted"
    )
    env = config.env_id
    told = env_id(env) == env
    require(
        told,
        "the actions of",
        env,
        "target poses and deltas in the asd/ environments, and actions in environments that robosuite lacks",
    )
    bound = robots.action_bound(env)
    require(config.action_bound == bound, f"actions in {env} bounded by", config.action_bound, bound)
    parts = config.action_parts
    kind = "rel" if env.startswith("asd/") and not takes_poses(env) else "abs"
    dims = {f"action_dict/{kind}_{i}": part.dim for i, part in enumerate(parts)} or {"actions": config.action_dim}
    formats = dict(zip(dims, ("rot_6d" if part.kind == "rot6d" else None for part in parts), strict=False))
    network = {NETWORK + name: value for name, value in tensors_below(checkpoint, "model.").items()}
    payload = {
        "model": {"nets": network, "optimizers": {}, "lr_schedulers": {}, "ema": None},
        "config": _written_config(checkpoint, list(dims), formats),
        "algo_name": "diffusion_policy",
        "env_metadata": _written_metadata(config.env_id),
        "shape_metadata": {
            "ac_dim": config.action_dim,
            "all_shapes": {key: [dim] for key, dim in config.obs_keys.items()},
            "all_obs_keys": list(config.obs_keys),
            "use_images": False,
        },
        "variable_state": None,
        "obs_normalization_stats": {
            key: _written_stats(*spread_and_center(checkpoint, key)) for key in config.obs_keys
        },
        "action_normalization_stats": {
            key: _written_stats(spread, center)
            for key, spread, center in zip(
                dims,
                *(torch.split(whole, list(dims.values())) for whole in spread_and_center(checkpoint, "action")),
                strict=True,
            )
        },
    }
    torch.save(payload, path)


def _written_stats(spread: Tensor, center: Tensor) -> dict[str, Any]:
    return {"scale": [spread.tolist()], "offset": [center.tolist()]}


def _written_metadata(env: str) -> dict[str, Any]:
    """The environment's metadata, with a controller that takes deltas, or target poses in a frame."""
    controller: dict[str, Any] = {"type": POSE_CONTROLLER, "input_type": "delta"}
    name = env
    for frame, poses in POSES.items():
        if takes_poses(env) and poses in env:
            controller |= {"input_type": "absolute", "input_ref_frame": frame}
            name = env.replace(poses, "")
    names = {ours: theirs for theirs, ours in ENV_IDS.items()}  # the last entry for each id is robosuite's name
    known = {"controller_configs": {"type": "BASIC", COMPOSITE: {"right": controller}}} if name in names else {}
    return {"env_name": names.get(name, env), "env_version": "1.5", "type": ROBOSUITE, "env_kwargs": known}


def _written_config(checkpoint: Checkpoint, keys: list[str], formats: Mapping[str, str | None]) -> str:
    from robomimic.config import config_factory

    config, ours = config_factory("diffusion_policy"), checkpoint.config
    with config.unlocked():
        config.observation.modalities.obs.low_dim = list(ours.obs_keys)
        config.train.action_keys = keys
        config.train.action_config = {key: {"normalization": "min_max", "format": formats.get(key)} for key in keys}
        config.train.hdf5_normalize_obs = True
        config.train.seq_length, config.train.frame_stack = ours.horizon, ours.n_obs_steps
        config.algo.horizon.observation_horizon = ours.n_obs_steps
        config.algo.horizon.action_horizon = ours.n_action_steps
        config.algo.horizon.prediction_horizon = ours.horizon
        config.algo.ema.enabled = False
        config.algo.ddpm.num_train_timesteps = ours.scheduler.num_train_timesteps
        config.algo.ddpm.num_inference_timesteps = ours.scheduler.num_train_timesteps
        config.algo.ddpm.beta_schedule = ours.scheduler.beta_schedule
        config.algo.ddpm.clip_sample = ours.scheduler.clip_sample
        config.algo.ddpm.prediction_type = ours.scheduler.prediction_type
        for name in ("num_train_batches", "num_epochs"):  # robomimic's optimizer schedule needs them
            config.algo.optim_params["policy"][name] = 1
    return str(config.dump())
