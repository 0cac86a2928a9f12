"""Folders of https://github.com/huggingface/lerobot: diffusion policies on states and images.

The normalisation lies in the state files of the processors, or, in older folders, in buffers beside the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers import robots
from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint, affine_field
from asd_policy.importers.files import TensorPool, entry, read_json, read_safetensors
from asd_policy.importers.network_sizes import check_claims, unet_sizes
from asd_policy.importers.vision import encoder_tensors, image_field, image_key, rgb_encoder
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey, central_crop

FORMAT = "lerobot"
SIDECAR = "asd_policy.json"
"""Written by our own export, for what lerobot's files have no place for."""

KEYS = {"observation.state": "state", "observation.environment_state": "environment_state"}
"""lerobot's name -> the observation's name here, in the order of the condition. Images come between the two."""

IMAGES = "observation.image"
"""What the names of images begin with; here they are called by their last part."""

RENAMES = (
    (r"\.conv([12])\.block\.", lambda m: f".blocks.{int(m[1]) - 1}.block."),
    (r"^((?:down|up)_modules\.\d+\.2)\.(\w+)$", r"\1.conv.\2"),
)
BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
DEFAULT_EPS = 1e-8
CLAIMS = {
    "down_dims": "down_dims",
    "kernel_size": "kernel_size",
    "diffusion_step_embed_dim": "diffusion_step_embed_dim",
    "use_film_scale_modulation": "cond_predict_scale",
}

Stats = dict[str, Tensor]
"""Statistics of one feature by name: min, max, mean, std, q01 ..."""


def read(path: Path) -> Checkpoint:
    """The policy in a folder. If there is a `pretrained_model_ema` beside it, pass that one for the averaged weights.

    Raises:
        CheckpointError: if it is damaged, or a policy of a kind that is not supported.
    """
    where = str(path)
    config = read_json(path / CONFIG)
    if config.get("type", "diffusion") != "diffusion":
        raise CheckpointError(f"{where} holds a lerobot policy of type {config['type']!r}; expected 'diffusion'.")
    features = {**entry(config, "input_features", where), **entry(config, "output_features", where)}
    shapes = {name: _shape(feature, name, where) for name, feature in features.items()}
    weights = read_safetensors(path / WEIGHTS)
    pool = TensorPool({name.replace("._orig_mod", ""): value for name, value in weights.items()}, where)
    network = {_renamed(name): value for name, value in pool.take_all("diffusion.unet.").items()}
    encoders = _encoders(pool, config, [name for name, shape in shapes.items() if len(shape) == 3], where)
    stats, eps = _legacy_stats(pool, shapes) or _processor_stats(path, shapes)
    pool.finish()
    normaliser = _normaliser(config, features, stats, eps, where)
    return _checkpoint(path, config, shapes, network, encoders, normaliser)


def _shape(feature: Any, name: str, where: str) -> tuple[int, ...]:
    """(D,), of an image (C, H, W)."""
    shape, kind = entry(feature, "shape", f"{where}: {name}"), entry(feature, "type", f"{where}: {name}")
    image = kind == "VISUAL"
    if len(shape) != (3 if image else 1) or not (name.startswith(IMAGES) if image else name in (*KEYS, "action")):
        raise CheckpointError(
            f"{where}: feature {name!r} is of type {kind} and shape {shape}; expected vectors {', '.join(KEYS)} and "
            f"action, and images {IMAGES}s.NAME of shape (C, H, W)."
        )
    return tuple(shape)


def _name(feature: str) -> str:
    """The observation's name here."""
    return KEYS.get(feature, feature.rpartition(".")[2])


def _encoders(
    pool: TensorPool, config: dict[str, Any], images: list[str], where: str
) -> dict[str, Mapping[str, Tensor]]:
    """The encoder of each image by lerobot's name. A shared one stands for each of them."""
    prefix = "diffusion.rgb_encoder."
    if images and not entry(config, "use_separate_rgb_encoder_per_camera", where):
        shared = rgb_encoder(pool.take_all(prefix))
        return {name: {key: value.clone() for key, value in shared.items()} for name in images}
    return {name: rgb_encoder(pool.take_all(f"{prefix}{index}.")) for index, name in enumerate(images)}


def _image(
    name: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], config: dict[str, Any], where: str
) -> tuple[ImageKey, int]:
    """The image and the number of its features."""
    channels, height, width = shape
    resize, crop = config.get("resize_shape"), entry(config, "crop_shape", where)
    if resize:  # then lerobot derives the crop from its ratio alone
        ratio = entry(config, "crop_ratio", where)
        crop = [int(size * ratio) for size in resize] if ratio < 1 else None
    place = central_crop(resize or (height, width), crop, round) if crop else ()
    backbone = entry(config, "vision_backbone", where)
    return image_key(_name(name), (channels, height, width), encoder, where, place, tuple(resize or ()), backbone)


def _renamed(name: str) -> str:
    """lerobot's name of a U-Net's tensor in our vocabulary."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _legacy_stats(pool: TensorPool, features: Iterable[str]) -> tuple[dict[str, Stats], float] | None:
    """Statistics from buffers beside the weights; None if there are none."""
    stats: dict[str, Stats] = {}
    for name in features:
        group = "unnormalize_outputs" if name == "action" else "normalize_inputs"
        stats[name] = pool.take_all(f"{group}.buffer_{name.replace('.', '_')}.")
        pool.take_all(f"normalize_targets.buffer_{name.replace('.', '_')}.")  # of the training loss: the action's again
    return (stats, DEFAULT_EPS) if any(stats.values()) else None


def _processor_stats(path: Path, features: Iterable[str]) -> tuple[dict[str, Stats], float]:
    """Statistics from the processors' state files: inputs from the first pipeline, the action from the second."""
    before, eps = _step_stats(path, "policy_preprocessor.json", "normalizer_processor")
    after, _ = _step_stats(path, "policy_postprocessor.json", "unnormalizer_processor")
    stats: dict[str, Stats] = {name: {} for name in features}
    for name in stats:
        for key, value in (after if name == "action" else before).items():
            feature, _, statistic = key.rpartition(".")
            if feature == name:
                stats[name][statistic] = value
    return stats, eps


def _step_stats(path: Path, pipeline: str, step_name: str) -> tuple[dict[str, Tensor], float]:
    """The tensors in the state file of a pipeline's step, and its epsilon."""
    if not (path / pipeline).is_file():
        raise CheckpointError(
            f"{path} has neither {pipeline} nor normalisation buffers in its weights. Without normalisation the policy "
            "would act wrongly: convert the folder with lerobot's migrate_policy_normalization first."
        )
    where = str(path / pipeline)
    steps = [step for step in entry(read_json(path / pipeline), "steps", where) if isinstance(step, dict)]
    found = [step for step in steps if step.get("registry_name") == step_name]
    if len(found) != 1:
        raise CheckpointError(f"{where} has {len(found)} steps {step_name!r}; expected one.")
    file = entry(found[0], "state_file", where)
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
        raise CheckpointError(f"{where} names the state file {file!r}; expected a name in its own folder.")
    return read_safetensors(path / file), float(found[0].get("config", {}).get("eps", DEFAULT_EPS))


def _normaliser(
    config: dict[str, Any], features: Mapping[str, Any], stats: Mapping[str, Stats], eps: float, where: str
) -> dict[str, Tensor]:
    """The normalisation of each feature under its name here."""
    modes = entry(config, "normalization_mapping", where)
    tensors: dict[str, Tensor] = {}
    for name, feature in features.items():
        # A feature whose type has no mode is left as it is, by lerobot too.
        mode = modes.get(feature["type"], "IDENTITY")
        try:
            affine = _affine(mode, stats[name], feature["shape"][0], eps, is_action=name == "action")
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{where}: cannot normalise {name} by {mode} with {sorted(stats[name])}.") from error
        if len(feature["shape"]) == 3:
            affine = image_field(*affine, feature["shape"][0])
        tensors |= affine_field(_name(name), *affine)
    return tensors


def _affine(mode: str, stats: Stats, dim: int, eps: float, is_action: bool) -> tuple[Tensor, Tensor]:
    """lerobot's normalisation as y = x * scale + offset, each (D,) float64.

    Raises:
        KeyError: on an unknown mode, or statistics that are missing.
        ValueError: on statistics of another shape.
    """
    if mode == "IDENTITY":
        return torch.ones(dim), torch.zeros(dim)
    names = ("mean", "std") if mode == "MEAN_STD" else BOUNDS[mode]
    first, second = (stats[name].double() for name in names)
    if first.shape == (dim, 1, 1):  # of an image
        first, second = first.flatten(), second.flatten()
    if first.shape != (dim,) or second.shape != (dim,):
        raise ValueError(f"{names} have shapes {tuple(first.shape)}, {tuple(second.shape)}")
    if mode == "MEAN_STD":
        spread = second if is_action else second + eps  # lerobot adds it on the way in only
        return 1 / spread, -first / spread
    still = second == first
    scale = 2 / torch.where(still, eps, second - first)
    if is_action:
        return scale, -1 - first * scale
    # What never moved is stretched by 2e8 in lerobot, and is -1 wherever it keeps its value. Here it is always -1.
    return torch.where(still, 0.0, scale), torch.where(still, -1.0, -1 - first * scale)


def _checkpoint(
    path: Path,
    config: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    network: dict[str, Tensor],
    encoders: Mapping[str, Mapping[str, Tensor]],
    normaliser: dict[str, Tensor],
) -> Checkpoint:
    where = str(path)
    images = {name: _image(name, shapes[name], encoder, config, where) for name, encoder in encoders.items()}
    state, environment = ({KEYS[name]: shapes[name][0]} if name in shapes else {} for name in KEYS)
    sizes = unet_sizes(network, entry(config, "n_groups", where), where)
    check_claims(sizes.network, {ours: entry(config, theirs, where) for theirs, ours in CLAIMS.items()}, where)
    scheduler, notes = _scheduler(config, where)
    sidecar = read_json(path / SIDECAR) if (path / SIDECAR).is_file() else {}
    policy = PolicyConfig(
        env_id=sidecar.get("env_id", "unknown"),
        obs_keys=state | {image.key: features for image, features in images.values()} | environment,
        action_dim=shapes.get("action", (0,))[0],
        n_obs_steps=entry(config, "n_obs_steps", where),
        horizon=entry(config, "horizon", where),
        n_action_steps=entry(config, "n_action_steps", where),
        action_bound=sidecar.get("action_bound"),
        network=sizes.network,
        scheduler=scheduler,
        action_parts=tuple(ActionPart(**part) for part in sidecar.get("action_parts", ())),
        images=tuple(image for image, _ in images.values()),
    )
    tensors = {f"model.{name}": value for name, value in network.items()} | normaliser
    for name, encoder in encoders.items():
        tensors |= encoder_tensors(_name(name), encoder)
    checkpoint = Checkpoint(path, FORMAT, policy, tensors, notes)
    return checkpoint.with_obs_keys(sidecar["obs_keys"]) if "obs_keys" in sidecar else checkpoint


def _scheduler(config: dict[str, Any], where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")
    values = {name: entry(config, name, where) for name in (*names, "clip_sample_range")}
    kind, steps = entry(config, "noise_scheduler_type", where), entry(config, "num_inference_steps", where)
    scheduler = SchedulerConfig(**values)
    return scheduler, robots.scheduler_notes(
        kind, steps or scheduler.num_train_timesteps, scheduler.num_train_timesteps
    )
