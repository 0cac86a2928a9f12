"""Remake `golden/lerobot*`: small policies saved by lerobot itself, and what lerobot computes with them.

    pip install lerobot[diffusion] && python tests/importers/make_lerobot_golden.py

Run it in an environment of lerobot's own. A folder holds what `save_pretrained` wrote (config, weights, processors)
and `golden.safetensors`: observations, the noise of one DDPM chain, the network's input and output, and the actions.
Image encoders are big: in place of their policies' weights there is `shapes.json`, and `recipe.py` makes them again.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from recipe import CONSTANTS, KEPT, restored, shapes_of
from safetensors.torch import load_file, save_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
ACTION = 7
NUM_STEPS = 20
STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (9,))}
COMMON = {
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    "n_obs_steps": 2,
    "horizon": 8,
    "n_action_steps": 5,
    "down_dims": (16, 32),
    "kernel_size": 3,
    "n_groups": 4,
    "diffusion_step_embed_dim": 16,
    "num_train_timesteps": NUM_STEPS,
    "clip_sample_range": 1.5,
    "device": "cpu",
}


def cameras(height: int, width: int) -> dict[str, PolicyFeature]:
    names = ("observation.images.front", "observation.images.wrist")
    return {name: PolicyFeature(FeatureType.VISUAL, (3, height, width)) for name in names}


RGB = {
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
    "vision_backbone": "resnet18",
    "pretrained_backbone_weights": None,
    "spatial_softmax_num_keypoints": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lerobot": {
        "input_features": STATE | {"observation.environment_state": PolicyFeature(FeatureType.ENV, (14,))},
        "normalization_mapping": {"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
    },
    "lerobot_rgb": RGB  # what is cut off is odd: half of it rounds up in one direction and down in the other
    | {
        "input_features": STATE | cameras(48, 56),
        "crop_shape": (41, 43),
        "use_group_norm": True,
        "use_separate_rgb_encoder_per_camera": False,
    },
    "lerobot_rgb_separate": RGB  # feature maps that are not square
    | {
        "input_features": STATE | cameras(40, 72),
        "use_group_norm": False,
        "use_separate_rgb_encoder_per_camera": True,
    },
}


def statistics(feature: PolicyFeature) -> dict[str, Tensor]:
    if feature.type is FeatureType.VISUAL:
        return {"mean": 0.4 + 0.2 * torch.rand(3, 1, 1), "std": 0.2 + 0.1 * torch.rand(3, 1, 1)}
    low, high = -1 - torch.rand(feature.shape), 1 + torch.rand(feature.shape)
    high[1] = low[1]  # an entry that never moved
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}


def observed(feature: PolicyFeature) -> Tensor:
    """A vector, or an image of bytes with its channels last, as cameras give it."""
    if feature.type is FeatureType.VISUAL:
        channels, *size = feature.shape
        return torch.randint(256, (*size, channels), dtype=torch.uint8)
    return torch.randn(feature.shape)


def for_lerobot(value: Tensor) -> Tensor:
    return value.permute(2, 0, 1) / 255 if value.dtype == torch.uint8 else value


def make(name: str) -> None:
    torch.manual_seed(0)
    folder = GOLDEN / name
    config = DiffusionConfig(**COMMON, **VARIANTS[name])
    features = {**config.input_features, **config.output_features}
    stats = {key: statistics(feature) for key, feature in features.items()}
    policy = DiffusionPolicy(config).eval()
    preprocess, postprocess = make_diffusion_pre_post_processors(config, stats)
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(folder)
    kept = remake_weights(policy, folder / "model.safetensors") if config.image_features else {}

    first = {key: observed(feature) for key, feature in config.input_features.items()}
    first["observation.state"][1] = stats["observation.state"]["min"][1]
    given = {key: for_lerobot(value) for key, value in first.items()}
    start = torch.randn(1, config.horizon, ACTION)
    xi = torch.randn(1, NUM_STEPS, config.horizon, ACTION)
    conditions: list[Tensor] = []
    hook = policy.diffusion.unet.register_forward_pre_hook(
        lambda _, __, kwargs: conditions.append(kwargs["global_cond"]), with_kwargs=True
    )
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", side_effect=xi.unbind(dim=1)):
        actions = [postprocess(policy.select_action(preprocess(dict(given)), noise=start))[0]]
    actions += [postprocess(policy.select_action(preprocess(dict(given))))[0] for _ in range(config.n_action_steps - 1)]
    hook.remove()

    sample, timestep = torch.randn(3, config.horizon, ACTION), torch.tensor([0, 7, NUM_STEPS - 1])
    cond = torch.randn(3, conditions[0].shape[1])
    with torch.no_grad():
        output = policy.diffusion.unet(sample, timestep, global_cond=cond)
    golden = {**first, "start": start, "xi": xi, "actions": torch.stack(actions)}
    golden |= {"sample": sample, "timestep": timestep, "cond": cond, "output": output}
    golden |= {KEPT + key: value for key, value in kept.items()}
    if config.image_features:
        golden["global_cond"] = conditions[0]
    golden = {key: value.contiguous() for key, value in golden.items()}
    save_file(golden, folder / "golden.safetensors", {"lerobot": version("lerobot"), "torch": torch.__version__})


def remake_weights(policy: DiffusionPolicy, file: Path) -> dict[str, Tensor]:
    """Give the policy weights of the recipe, and keep the names and shapes in place of its file; what is no weight."""
    state = load_file(file)
    kept = {name: value for name, value in state.items() if name.endswith(CONSTANTS)}
    policy.load_state_dict(restored(shapes_of(state), kept, {}))
    (file.parent / "shapes.json").write_text(json.dumps(shapes_of(state)) + "\n")
    file.unlink()
    return kept


if __name__ == "__main__":
    for variant in VARIANTS:
        make(variant)
