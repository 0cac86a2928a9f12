"""A small policy with random weights, as a checkpoint folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.normalizer import LinearNormalizer


def tiny_checkpoint(
    folder: Path, obs_keys: Mapping[str, int], action_dim: int, down_dims: tuple[int, ...] = (8, 16)
) -> Path:
    """Write the folder, whose second action never moves in the "demonstrations" and whose chain has 12 steps."""
    folder.mkdir()
    config = PolicyConfig(
        env_id="asd/Square-v0",
        obs_keys=obs_keys,
        action_dim=action_dim,
        network=NetworkConfig(down_dims=down_dims, diffusion_step_embed_dim=8, kernel_size=3),
        scheduler=SchedulerConfig(num_train_timesteps=12),
    )
    config.save(folder / "config.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConditionalUnet1D(
            action_dim, config.global_cond_dim, down_dims, kernel_size=3, diffusion_step_embed_dim=8
        )
    normalizer = LinearNormalizer({**obs_keys, "action": action_dim})
    low, high = -torch.ones(action_dim), 0.7 * torch.ones(action_dim)
    low[1] = high[1] = 1.0
    normalizer.fit("action", torch.stack([low, high]))
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"normalizer.{name}": value for name, value in normalizer.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
