"""A policy's networks from its configuration."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain

import torch
from torch import Tensor, nn

from asd_policy.core.denoiser import can_prepare
from asd_policy.errors import ConfigError
from asd_policy.nets import ConditionalTransformer, ConditionalUnet1D
from asd_policy.nets.unet1d import Film
from asd_policy.nets.unet1d_channels_last import store_channels_last
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.keyed import KeyedModules

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def build_network(config: PolicyConfig, seed: int = 0) -> ConditionalUnet1D | ConditionalTransformer:
    """The policy's network with fresh weights, the same for the same seed. Leaves the global generator alone."""
    sizes = asdict(config.network)
    del sizes["name"]
    with fresh_weights(seed):
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
        with fresh_weights(seed):
            for image in config.images:
                sizes = asdict(image)
                del sizes["key"], sizes["shape"]
                encoders[image.key] = ImageEncoder(image.channels, config.obs_keys[image.key], **sizes)
    return encoders


class InferenceCopy(nn.Module):
    """A U-Net run in another type or memory layout, from a copy that follows the original's weights.

    The copy is refreshed once per chunk, in `prepare`: whatever has happened to the original, in place or not, counts.
    That costs 1 to 2 ms for 5 million parameters on one core of a CPU.

    Args:
        network: the original.
        dtype: of the weights that run at every evaluation.
        channels_last: lay the convolutions out for compiled code on a CPU.
    """

    def __init__(self, network: ConditionalUnet1D, dtype: torch.dtype, channels_last: bool):
        super().__init__()
        self.original = network
        self._layers = _layers(network)
        with torch.inference_mode(False):  # tensors made in inference mode could not be refreshed outside
            self.copy = copy.deepcopy(network).requires_grad_(False)
            self.copy.trunk_to(dtype)
            if channels_last:
                store_channels_last(self.copy)

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """As `ConditionalUnet1D`."""
        self._refresh()
        return self.copy(sample, timestep, global_cond)

    def prepare(self, timesteps: Tensor, global_cond: Tensor) -> Film:
        """As `ConditionalUnet1D.prepare`, with the weights as they are now."""
        self._refresh()
        return self.copy.prepare(timesteps, global_cond)

    def predict(self, sample: Tensor, step: Tensor, row: Tensor, film: Film) -> Tensor:
        """As `ConditionalUnet1D.predict`."""
        return self.copy.predict(sample, step, row, film)

    @torch.no_grad()
    def _refresh(self) -> None:
        now, copied = ([*net.parameters(), *net.buffers()] for net in (self.original, self.copy))
        same_sizes = [tensor.shape for tensor in now] == [tensor.shape for tensor in copied]
        if not same_sizes or _layers(self.original) != self._layers:
            raise ConfigError("The network's layers are not those it had when the policy was made: make a new policy.")
        torch._foreach_copy_(copied, [tensor.detach() for tensor in now])


def _layers(network: nn.Module) -> list[tuple[str, type[nn.Module], int]]:
    """What a copy does not follow: each layer's name, its type, and how many hooks it has."""
    modules = network.named_modules()
    return [(name, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for name, m in modules]


def kinds_of_tensors(*modules: nn.Module) -> frozenset[tuple[torch.device, torch.dtype]]:
    """Where the modules' weights and buffers of floating point lie, and of which types they are."""
    tensors = (tensor for module in modules for tensor in chain(module.parameters(), module.buffers()))
    return frozenset((tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point())


def for_inference(network: nn.Module, dtype: torch.dtype, compiled_on_cpu: bool) -> nn.Module:
    """The network as a sampler runs it: itself, or an `InferenceCopy`.

    Raises:
        ConfigError: if it is no type to run a network in, or the network can only be run in float32.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(map(str, DTYPES))}.")
    if not isinstance(network, ConditionalUnet1D) or not can_prepare(network):
        if dtype != torch.float32:
            raise ConfigError(f"dtype is {dtype}, but a {type(network).__name__} runs in torch.float32 alone.")
        return network
    if dtype == torch.float32 and not compiled_on_cpu:
        return network
    return InferenceCopy(network, dtype, channels_last=compiled_on_cpu)


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Run the networks as in evaluation; whoever is training them goes on as before."""
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
    """Networks made within draw float32 weights from `seed`, whatever the defaults; torch's globals stay as they were.

    Layers take neither a generator nor, all of them, a type.
    """
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
