"""The temporal U-Net that real-stanford, robomimic and lerobot share: its sizes, read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from asd_policy.errors import CheckpointError
from asd_policy.policies.config import NetworkConfig


class UnetSizes(NamedTuple):
    """What a U-Net's tensors say about it."""

    network: NetworkConfig
    action_dim: int
    global_cond_dim: int


def unet_sizes(tensors: Mapping[str, Any], n_groups: int, where: str) -> UnetSizes:
    """The sizes of the U-Net with these tensors, named as in `asd_policy.nets.ConditionalUnet1D`.

    Files of robomimic describe sizes that their network does not have: only the tensors can be believed.

    Args:
        n_groups: groups of the GroupNorm layers, which leave no trace in the tensors.

    Raises:
        CheckpointError: if they are not those of such a U-Net.
    """
    try:
        levels = sum(f"down_modules.{i}.0.blocks.0.block.0.weight" in tensors for i in range(len(tensors)))
        first = [tensors[f"down_modules.{i}.0.blocks.0.block.0.weight"].shape for i in range(levels)]
        step_dim = tensors["diffusion_step_encoder.1.weight"].shape[1]
        film_dim, cond_dim = tensors["down_modules.0.0.cond_encoder.1.weight"].shape
        down_dims = tuple(shape[0] for shape in first)
        network = NetworkConfig(
            down_dims=down_dims,
            kernel_size=first[0][2],
            n_groups=n_groups,
            diffusion_step_embed_dim=step_dim,
            cond_predict_scale=film_dim == 2 * down_dims[0],
        )
        return UnetSizes(network, first[0][1], cond_dim - step_dim)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{where} holds no temporal U-Net that can be understood: {error}") from error


def check_claims(network: NetworkConfig, claims: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError if a file's own description of its U-Net is not that of its tensors.

    Args:
        claims: fields of NetworkConfig and what the file says of them.
    """
    for name, claimed in claims.items():
        found = getattr(network, name)
        if (tuple(claimed) if isinstance(claimed, list | tuple) else claimed) != found:
            raise CheckpointError(f"{where} says {name} is {claimed}, but its tensors have {found}.")
