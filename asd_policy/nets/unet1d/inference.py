"""The U-Net in another type or memory layout, for inference."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from asd_policy.errors import ConfigError
from asd_policy.nets.unet1d.channels_last import store_channels_last

if TYPE_CHECKING:
    from asd_policy.nets.unet1d.network import ConditionalUnet1D, Film


class InferenceCopy(nn.Module):
    """A copy of a U-Net in another type or memory layout, which follows the original's weights.

    `prepare` copies the original's weights once per chunk, so that every change of them counts. The copying takes 1 to
    2 ms for 5 million parameters on one CPU core.

    Args:
        network: the original.
        dtype: of the weights that run at every evaluation.
        channels_last: lay the convolutions out in memory for compiled code on a CPU.
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
        noise: Tensor = self.copy(sample, timestep, global_cond)
        return noise

    def prepare(self, timesteps: Tensor, global_cond: Tensor) -> Film:
        """As `ConditionalUnet1D.prepare`, with the original's present weights.

        Raises:
            ConfigError: if a layer of the original was replaced, resized or given a hook.
        """
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
    """Each layer's name, type and number of hooks: changes that copying the weights does not carry over."""
    modules = network.named_modules()
    return [(name, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for name, m in modules]
