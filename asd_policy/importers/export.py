"""Policies written as robomimic's and lerobot's files, where their networks and schedulers can be told so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.importers import lerobot, robomimic
from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint, field_name
from asd_policy.policies.config import NetworkConfig, SchedulerConfig
from asd_policy.policies.tasks import ENV_IDS

ROBOMIMIC_NETWORK = NetworkConfig(down_dims=(256, 512, 1024), kernel_size=5, n_groups=8, diffusion_step_embed_dim=256)
"""The only one that robomimic builds."""

NEVER_MOVES = 1e30
"""Range of an entry that the policy ignores: whatever its value, it is normalised to the same number."""

STEADY_SIGNS = ("observations", "with quaternions of steady sign", "those that the environment gives")
IMAGES = ("observations", "with images", "vectors")


def to_native(checkpoint: Checkpoint, folder: Path) -> None:
    """Write this package's own folder."""
    checkpoint.save(folder)


def to_robomimic(checkpoint: Checkpoint, path: Path) -> None:
    """Write a robomimic `.pth`; needs robomimic for its configuration.

    Raises:
        ConfigError: if robomimic has no such network, scheduler or order of observations.
    """
    config = checkpoint.config
    free = ("num_train_timesteps", "beta_schedule", "clip_sample", "prediction_type")
    fixed = {name: value for name, value in asdict(SchedulerConfig()).items() if name not in free}
    _require(not config.quaternions, *STEADY_SIGNS)
    _require(not config.images, *IMAGES)
    _require(config.network == ROBOMIMIC_NETWORK, "the network", config.network, ROBOMIMIC_NETWORK)
    _require(fixed.items() <= asdict(config.scheduler).items(), "the scheduler", config.scheduler, fixed)
    _require(
        list(config.obs_keys) == sorted(config.obs_keys), "the order of observations", list(config.obs_keys), "sorted"
    )
    parts = config.action_parts
    dims = {f"action_dict/abs_{i}": part.dim for i, part in enumerate(parts)} or {"actions": config.action_dim}
    formats = dict(zip(dims, ("rot_6d" if part.kind == "rot6d" else None for part in parts), strict=False))
    network = {robomimic.NETWORK + name: value for name, value in _network(checkpoint).items()}
    payload = {
        "model": {"nets": network, "optimizers": {}, "lr_schedulers": {}, "ema": None},
        "config": _robomimic_config(checkpoint, list(dims), formats),
        "algo_name": "diffusion_policy",
        "env_metadata": {"env_name": _robosuite_name(config.env_id), "type": 1, "env_kwargs": {}},
        "shape_metadata": {
            "ac_dim": config.action_dim,
            "all_shapes": {key: [dim] for key, dim in config.obs_keys.items()},
            "all_obs_keys": list(config.obs_keys),
            "use_images": False,
        },
        "variable_state": None,
        "obs_normalization_stats": {key: _robomimic_stats(*_affine(checkpoint, key)) for key in config.obs_keys},
        "action_normalization_stats": {
            key: _robomimic_stats(scale, offset)
            for key, scale, offset in zip(
                dims, *(whole.split(list(dims.values())) for whole in _affine(checkpoint, "action")), strict=True
            )
        },
    }
    torch.save(payload, path)


def to_lerobot(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a lerobot folder: all observations but the last key are its state, the last is its environment's state.

    What lerobot has no place for (the keys' names, the environment, the action's parts) lies in `asd_policy.json`.

    Raises:
        ConfigError: if there is only one observation key, which lerobot refuses.
    """
    config = checkpoint.config
    _require(not config.quaternions, *STEADY_SIGNS)
    _require(not config.images, *IMAGES)
    _require(len(config.obs_keys) > 1, "the number of observation keys", len(config.obs_keys), "at least two")
    _require(
        config.scheduler.variance_type == "fixed_small", "the variance", config.scheduler.variance_type, "fixed_small"
    )
    _require(isinstance(config.network, NetworkConfig), "the network", config.network, "a temporal U-Net")
    *state, environment = config.obs_keys
    stats = {
        "observation.state": _bounds(checkpoint, *state),
        "observation.environment_state": _bounds(checkpoint, environment),
        "action": _bounds(checkpoint, "action"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    network = {f"diffusion.unet.{_lerobot_name(name)}": value for name, value in _network(checkpoint).items()}
    save_file(network, folder / WEIGHTS)
    features = {
        name: {"type": kind, "shape": list(stats[name]["min"].shape)}
        for name, kind in zip(stats, ("STATE", "ENV", "ACTION"), strict=True)
    }
    _write(folder / CONFIG, _lerobot_config(checkpoint, features))
    sidecar = {name: config.to_dict()[name] for name in ("env_id", "obs_keys", "action_bound", "action_parts")}
    _write(folder / lerobot.SIDECAR, sidecar)
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
        settings = {"eps": lerobot.DEFAULT_EPS, "features": features, "norm_map": _MODES}
        steps = [*around, {"registry_name": step, "config": settings, "state_file": state_file}]
        _write(folder / f"{pipeline}.json", {"name": pipeline, "steps": steps})


EXPORTS: Mapping[str, Callable[[Checkpoint, Path], None]] = {
    "native": to_native,
    "robomimic": to_robomimic,
    "lerobot": to_lerobot,
}
"""Format -> what writes it."""

_MODES = {"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}


def _network(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {
        name.removeprefix("model."): value.detach().cpu().contiguous()
        for name, value in checkpoint.tensors.items()
        if name.startswith("model.")
    }


def _affine(checkpoint: Checkpoint, *keys: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of y = x * scale + offset over the keys side by side, float64: both survive the way back."""
    scale, offset = (
        torch.cat([checkpoint.tensors[field_name(key, kind)].double() for key in keys]) for kind in ("scale", "offset")
    )
    return torch.where(scale == 0, 1 / NEVER_MOVES, scale), offset


def _robomimic_stats(scale: Tensor, offset: Tensor) -> dict[str, Any]:
    return {"scale": [(1 / scale).tolist()], "offset": [(-offset / scale).tolist()]}


def _bounds(checkpoint: Checkpoint, *keys: str) -> dict[str, Tensor]:
    scale, offset = _affine(checkpoint, *keys)
    return {"min": (-1 - offset) / scale, "max": (1 - offset) / scale}


def _robomimic_config(checkpoint: Checkpoint, keys: list[str], formats: Mapping[str, str | None]) -> str:
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
        for name in ("num_train_batches", "num_epochs"):  # without them robomimic cannot build its optimizer's schedule
            config.algo.optim_params["policy"][name] = 1
    return str(config.dump())


def _lerobot_config(checkpoint: Checkpoint, features: dict[str, Any]) -> dict[str, Any]:
    config, network, scheduler = checkpoint.config, checkpoint.config.network, checkpoint.config.scheduler
    assert isinstance(network, NetworkConfig)
    return {
        "type": "diffusion",
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "input_features": {name: feature for name, feature in features.items() if name != "action"},
        "output_features": {"action": features["action"]},
        "normalization_mapping": _MODES,
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


def _lerobot_name(name: str) -> str:
    """lerobot's name of a tensor of our U-Net."""
    name = re.sub(r"\.blocks\.([01])\.block\.", lambda m: f".conv{int(m[1]) + 1}.block.", name)
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.conv\.", r"\1.", name)


def _robosuite_name(env_id: str) -> str:
    names = {ours: theirs for theirs, ours in ENV_IDS.items()}  # the last name of each id is robosuite's
    return names.get(env_id, env_id)


def _write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _require(condition: bool, what: str, got: Any, expected: Any) -> None:
    if not condition:
        raise ConfigError(f"This format cannot express {what} {got}; it can express {expected}.")
