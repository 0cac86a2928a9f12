"""Builds a policy's networks from its configuration, and prepares them for inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain

import torch
from torch import nn

from asd_policy.core.denoiser import can_prepare
from asd_policy.errors import ConfigError
from asd_policy.nets import HasInferenceForm
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.keyed import KeyedModules

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def build_network(config: PolicyConfig, seed: int = 0) -> nn.Module:
    """The policy's network with fresh weights drawn from `seed`. torch's global generator is not used."""
    with fresh_weights(seed):
        return config.network.build(config.action_dim, config.global_cond_dim, config.horizon, config.n_obs_steps)


def build_encoders(config: PolicyConfig, seed: int = 0) -> nn.ModuleDict:
    """The policy's image encoders by key, with fresh weights as in `build_network`.

    Raises:
        ConfigError: if there are images but torchvision is not installed.
    """
    encoders = KeyedModules()
    if config.images:
        try:
            from asd_policy.nets.vision import ImageEncoder
        except ImportError as error:
            raise ConfigError(
                f"A policy with images needs torchvision (pip install 'asd-policy[vision]'): {error}."
            ) from error
        with fresh_weights(seed):
            for image in config.images:
                sizes = asdict(image)
                del sizes["key"], sizes["shape"]
                encoders[image.key] = ImageEncoder(image.channels, config.obs_keys[image.key], **sizes)
    return encoders


def kinds_of_tensors(*modules: nn.Module) -> frozenset[tuple[torch.device, torch.dtype]]:
    """The pairs of device and dtype of the modules' floating-point weights and buffers."""
    tensors = (tensor for module in modules for tensor in chain(module.parameters(), module.buffers()))
    return frozenset((tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point())


def for_inference(network: nn.Module, dtype: torch.dtype, compiled_on_cpu: bool) -> nn.Module:
    """The network that a sampler runs: itself, or its own inference form (`nets.HasInferenceForm`).

    Raises:
        ConfigError: on an unsupported dtype, or on another than float32 if this network runs in float32 alone.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(map(str, DTYPES))}.")
    # The inference form would lack a subclass's own `forward` and hooks on the call.
    if isinstance(network, HasInferenceForm) and can_prepare(network):
        return network.for_inference(dtype, compiled_on_cpu)
    if dtype != torch.float32:
        raise ConfigError(f"dtype is {dtype}, but a {type(network).__name__} runs in torch.float32 alone.")
    return network


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """A context in which the networks are in evaluation mode. Afterwards each module returns to its own mode."""
    training = [module for network in networks for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """A context in which new layers draw float32 weights on the CPU from `seed`. torch's global state is restored.

    Layers take no generator argument, and some take no dtype argument.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
