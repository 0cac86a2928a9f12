"""A policy's network from its configuration."""

from dataclasses import asdict

import torch

from asd_policy.nets import ConditionalTransformer, ConditionalUnet1D
from asd_policy.policies.config import NetworkConfig, PolicyConfig


def build_network(config: PolicyConfig, seed: int = 0) -> ConditionalUnet1D | ConditionalTransformer:
    """The policy's network with fresh weights, the same for the same seed. Leaves the global generator alone."""
    sizes = asdict(config.network)
    del sizes["name"]
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        if isinstance(config.network, NetworkConfig):
            return ConditionalUnet1D(config.action_dim, config.global_cond_dim, **sizes)
        return ConditionalTransformer(
            config.action_dim, config.global_cond_dim, config.horizon, config.n_obs_steps, **sizes
        )
