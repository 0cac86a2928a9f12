"""Small policies of lerobot's, and observations for them."""

from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_policy_asd import AsdDiffusionConfig
from torch import Tensor

STATES = {
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    "observation.environment_state": PolicyFeature(FeatureType.ENV, (3,)),
}
CAMERAS = {
    "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
}
ACTION = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
Features = dict[str, PolicyFeature]


def settings(features: Features = STATES, **changes: Any) -> dict[str, Any]:
    """Arguments of DiffusionConfig for a small network that samples in 20 steps."""
    return {
        "input_features": features,
        "output_features": ACTION,
        "device": "cpu",
        "push_to_hub": False,
        "horizon": 8,
        "n_action_steps": 4,
        "down_dims": (16, 32),
        "kernel_size": 3,
        "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 20,
        "crop_shape": None,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": 4,
        **changes,
    }


def config(kind: str, features: Features = STATES, **changes: Any) -> Any:
    """The configuration of a "diffusion" or "asd_diffusion" policy."""
    made = {"diffusion": DiffusionConfig, "asd_diffusion": AsdDiffusionConfig}[kind]
    return made(**settings(features, **changes))


def policy(kind: str, features: Features = STATES, **changes: Any) -> Any:
    """A policy with random weights that depend on the features and sizes alone, ready to act."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = get_policy_class(kind)(config(kind, features, **changes))
    return made.eval()


def observation(step: int = 0, batch: int = 1, features: Features = STATES) -> dict[str, Tensor]:
    """The observations of one step, each (B, *shape)."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.rand(batch, *feature.shape, generator=generator) for name, feature in features.items()}


def history(*steps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Observations of several steps, each (B, steps, *shape)."""
    return {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}


def save(made: Any, folder: Path) -> Path:
    """Write the policy and its processors as lerobot's training does."""
    made.save_pretrained(folder)
    features = {**made.config.input_features, **made.config.output_features}
    stats = {
        name: {kind: torch.full(_stat_shape(feature), value) for kind, value in BOUNDS.items()}
        for name, feature in features.items()
    }
    for pipeline in make_pre_post_processors(made.config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
    return folder


BOUNDS = {"min": -2.0, "max": 2.0, "mean": 0.0, "std": 1.0}


def _stat_shape(feature: PolicyFeature) -> tuple[int, ...]:
    return (feature.shape[0], 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
