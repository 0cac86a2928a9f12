"""Describes a checkpoint in words, for `asd-policy import --inspect`."""

from __future__ import annotations

from asd_policy.importers.checkpoint import Checkpoint
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey


def describe(checkpoint: Checkpoint) -> dict[str, str]:
    """Property -> its description, for each property of the policy."""
    config = checkpoint.config
    first = config.n_obs_steps - 1
    return {
        "format": checkpoint.format,
        "environment": config.env_id,
        "architecture": config.network.describe(),
        "parameters": f"{_count_parameters(checkpoint):,}",
        "horizons": f"observes {config.n_obs_steps}, predicts {config.horizon}, "
        f"executes {config.n_action_steps} (chunk[{first}:{first + config.n_action_steps}])",
        "scheduler": _scheduler(config.scheduler),
        "observations": ", ".join(f"{key} {dim}" for key, dim in config.obs_keys.items())
        + f" (total {config.obs_dim})",
        "images": "\n".join(_image(image, config.obs_keys[image.key]) for image in config.images) or "none",
        "actions": _actions(config),
        "normalised": ", ".join(_normalised(checkpoint)) or "nothing",
    }


def _count_parameters(checkpoint: Checkpoint) -> int:
    """The number of values in the network and the image encoders, buffers included."""
    tensors = checkpoint.tensors.items()
    return sum(value.numel() for name, value in tensors if name.startswith(("model.", "encoders.")))


def _scheduler(scheduler: SchedulerConfig) -> str:
    clip = f"clipped to ±{scheduler.clip_sample_range:g}" if scheduler.clip_sample else "not clipped"
    return (
        f"DDPM {scheduler.num_train_timesteps} steps, {scheduler.beta_schedule}, {scheduler.variance_type}, "
        f"{scheduler.prediction_type}, {clip}"
    )


def _actions(config: PolicyConfig) -> str:
    parts = ", ".join(f"{part.kind} {part.dim}" for part in config.action_parts) or "as the network predicts them"
    bound = "no bounds" if config.action_bound is None else f"within ±{config.action_bound:g}"
    return f"{config.action_dim} -> {config.env_action_dim}: {parts}; {bound}"


def _image(image: ImageKey, features: int) -> str:
    """The image's shape, its encoder and its number of features."""
    shape = "x".join(map(str, image.shape))
    resized = f", resized to {image.resize[0]}x{image.resize[1]}" if image.resize else ""
    cropped = "" if not image.crop else ", cropped to {2}x{3} from row {0}, column {1}".format(*image.crop)
    encoder = f"{image.backbone} with {image.norm} norm, {image.num_keypoints} keypoints"
    return f"{image.key} {shape}{resized}{cropped}: {encoder} -> {features}"


def _normalised(checkpoint: Checkpoint) -> list[str]:
    """The fields with a normalisation other than the identity."""
    found = []
    for key in (*checkpoint.config.obs_keys, "action"):
        scale, offset, center = checkpoint.affine(key)
        if bool((scale != 1).any() or (offset != 0).any() or (center != 0).any()):
            found.append(key)
    return found
