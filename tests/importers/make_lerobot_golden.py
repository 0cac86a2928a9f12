"""Remake `golden/lerobot`: a small policy saved by lerobot itself, and what lerobot computes with it.

    pip install lerobot && python tests/importers/make_lerobot_golden.py

Run it in an environment of lerobot's own. The folder holds what `save_pretrained` wrote (config, weights, processors)
and `golden.safetensors`: observations, the noise of one DDPM chain, the network's input and output, and the actions.
"""

from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden" / "lerobot"
STATE, ENVIRONMENT, ACTION = 9, 14, 7
NUM_STEPS = 20


def statistics(dim: int) -> dict[str, torch.Tensor]:
    low = -1 - torch.rand(dim)
    high = 1 + torch.rand(dim)
    high[1] = low[1]  # an entry that never moved
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}


def main() -> None:
    torch.manual_seed(0)
    config = DiffusionConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (ENVIRONMENT,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        n_obs_steps=2,
        horizon=8,
        n_action_steps=5,
        down_dims=(16, 32),
        kernel_size=3,
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_train_timesteps=NUM_STEPS,
        clip_sample_range=1.5,
        normalization_mapping={"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
        device="cpu",
    )
    stats = {
        "observation.state": statistics(STATE),
        "observation.environment_state": statistics(ENVIRONMENT),
        "action": statistics(ACTION),
    }
    policy = DiffusionPolicy(config).eval()
    preprocess, postprocess = make_diffusion_pre_post_processors(config, stats)
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(FOLDER)

    first = {
        key: torch.randn(dim) for key, dim in (("observation.state", STATE), ("observation.environment_state", 14))
    }
    first["observation.state"][1] = stats["observation.state"]["min"][1]
    start = torch.randn(1, config.horizon, ACTION)
    xi = torch.randn(1, NUM_STEPS, config.horizon, ACTION)
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", side_effect=xi.unbind(dim=1)):
        actions = [postprocess(policy.select_action(preprocess(dict(first)), noise=start))[0]]
    actions += [postprocess(policy.select_action(preprocess(dict(first))))[0] for _ in range(config.n_action_steps - 1)]

    sample, timestep = torch.randn(3, config.horizon, ACTION), torch.tensor([0, 7, NUM_STEPS - 1])
    cond = torch.randn(3, config.n_obs_steps * (STATE + ENVIRONMENT))
    with torch.no_grad():
        output = policy.diffusion.unet(sample, timestep, global_cond=cond)
    golden = {**first, "start": start, "xi": xi, "actions": torch.stack(actions)}
    golden |= {"sample": sample, "timestep": timestep, "cond": cond, "output": output}
    golden = {name: value.contiguous() for name, value in golden.items()}
    save_file(golden, FOLDER / "golden.safetensors", {"lerobot": version("lerobot"), "torch": torch.__version__})


if __name__ == "__main__":
    main()
