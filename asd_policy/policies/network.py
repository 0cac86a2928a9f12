"""A policy's networks from its configuration."""

import copy
from dataclasses import asdict

import torch
from torch import nn

from asd_policy.errors import ConfigError
from asd_policy.nets import ConditionalTransformer, ConditionalUnet1D
from asd_policy.nets.unet1d_channels_last import store_channels_last
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.keyed import KeyedModules


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


def build_encoders(config: PolicyConfig, seed: int = 0) -> nn.ModuleDict:
    """The encoders of the policy's images by key, with fresh weights as those of `build_network`.

    Raises:
        ConfigError: if there are images, and no torchvision is installed.
    """
    encoders = KeyedModules()
    if config.images:
        try:
            from asd_policy.nets.vision import ImageEncoder
        except ImportError as error:
            raise ConfigError(
                f"A policy with images needs torchvision (pip install 'asd-policy[vision]'): {error}."
            ) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for image in config.images:
                sizes = asdict(image)
                del sizes["key"], sizes["shape"]
                encoders[image.key] = ImageEncoder(image.channels, config.obs_keys[image.key], **sizes)
    return encoders


def for_inference(network: nn.Module, dtype: torch.dtype, compiled_on_cpu: bool) -> nn.Module:
    """The network as a sampler runs it: itself, or a copy with its weights in `dtype`, packed for compiled code.

    Raises:
        ConfigError: if the network can only be run in float32.
    """
    if not isinstance(network, ConditionalUnet1D):
        if dtype != torch.float32:
            raise ConfigError(f"dtype is {dtype}, but a {type(network).__name__} runs in torch.float32 alone.")
        return network
    if dtype == torch.float32 and not compiled_on_cpu:
        return network
    network = copy.deepcopy(network).requires_grad_(False)
    network.trunk_to(dtype)
    if compiled_on_cpu:
        store_channels_last(network)
    return network
