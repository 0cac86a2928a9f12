"""Derives the sizes of networks in other libraries' files from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from asd_policy.errors import CheckpointError
from asd_policy.nets import NetworkConfig, TransformerConfig


class Sizes(NamedTuple):
    """A network's configuration and its action size, derived from its tensors."""

    network: NetworkConfig | TransformerConfig
    action_dim: int


def unet_sizes(tensors: Mapping[str, Any], n_groups: int, where: str) -> Sizes:
    """The sizes of the temporal U-Net with these tensors, named as in `asd_policy.nets.ConditionalUnet1D`.

    robomimic's configurations can name sizes that the network does not have, so only the tensors count.

    Args:
        n_groups: number of groups of the GroupNorm layers, which the tensors do not show.

    Raises:
        CheckpointError: if the tensors are not those of such a U-Net.
    """
    try:
        levels = sum(f"down_modules.{i}.0.blocks.0.block.0.weight" in tensors for i in range(len(tensors)))
        first = [tensors[f"down_modules.{i}.0.blocks.0.block.0.weight"].shape for i in range(levels)]
        step_dim = tensors["diffusion_step_encoder.1.weight"].shape[1]
        film_dim = tensors["down_modules.0.0.cond_encoder.1.weight"].shape[0]
        down_dims = tuple(shape[0] for shape in first)
        network = NetworkConfig(
            down_dims=down_dims,
            kernel_size=first[0][2],
            n_groups=n_groups,
            diffusion_step_embed_dim=step_dim,
            cond_predict_scale=film_dim == 2 * down_dims[0],
        )
        return Sizes(network, first[0][1])
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{where} holds no temporal U-Net that can be understood: {error}") from error


def transformer_sizes(tensors: Mapping[str, Any], n_head: int, where: str) -> Sizes:
    """The sizes of the transformer with these tensors, named as in `asd_policy.nets.ConditionalTransformer`.

    Args:
        n_head: number of attention heads, which the tensors do not show.

    Raises:
        CheckpointError: if the tensors are not those of such a transformer.
    """
    try:
        n_emb, action_dim = tensors["input_emb.weight"].shape
        layers = sum(f"decoder.layers.{i}.norm1.weight" in tensors for i in range(len(tensors)))
        return Sizes(TransformerConfig("transformer", layers, n_head, n_emb, "mask" in tensors), action_dim)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{where} holds no transformer that can be understood: {error}") from error


def check_claims(network: NetworkConfig | TransformerConfig, claims: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError if a file's configuration contradicts its tensors.

    Args:
        network: the sizes derived from the tensors.
        claims: field of the network's configuration -> the file's value.
    """
    for name, claimed in claims.items():
        found = getattr(network, name)
        if (tuple(claimed) if isinstance(claimed, list | tuple) else claimed) != found:
            raise CheckpointError(f"{where} says {name} is {claimed}, but its tensors have {found}.")
