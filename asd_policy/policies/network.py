"""A policy's network from its configuration."""

from dataclasses import asdict

import torch

from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.config import PolicyConfig


def build_network(config: PolicyConfig, seed: int = 0) -> ConditionalUnet1D:
    """The policy's network with fresh weights, the same for the same seed. Leaves the global generator alone."""
    sizes = asdict(config.network)
    del sizes["name"]
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        return ConditionalUnet1D(config.action_dim, config.global_cond_dim, **sizes)
