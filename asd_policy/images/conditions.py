"""The condition of a U-Net as one tensor for each image, and the keyword arguments that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.errors import ConfigError

SIZES = 6
"""Numbers in Stable Diffusion XL's `time_ids`: the original size, the crop's corner and the target size."""


class TextAndSizes(NamedTuple):
    """The condition of a U-Net of Stable Diffusion XL."""

    text: Tensor  # (..., L, D) embeddings of the prompt's tokens
    pooled: Tensor  # (..., P) pooled embedding of the prompt, diffusers' `text_embeds`
    sizes: Tensor  # (..., 6) diffusers' `time_ids`

    def packed(self) -> Tensor:
        """One float32 tensor (..., L * D + P + 6)."""
        return torch.cat([self.text.flatten(-2).float(), self.pooled.float(), self.sizes.float()], dim=-1)

    @staticmethod
    def unpack(packed: Tensor, config: Any) -> TextAndSizes:
        """The inverse of `packed` for a U-Net with this `config`, in float32."""
        pooled = pooled_width(config)
        text, pooled_values, sizes = packed.split([packed.shape[-1] - pooled - SIZES, pooled, SIZES], dim=-1)
        return TextAndSizes(text.unflatten(-1, (-1, text_width(config))), pooled_values, sizes)


def is_text_unet(config: Any) -> bool:
    """Whether the U-Net with this `config` is a UNet2DConditionModel. A compiled U-Net has another class."""
    return "cross_attention_dim" in config


def takes_sizes(config: Any) -> bool:
    """Whether the U-Net takes `TextAndSizes`, as Stable Diffusion XL's does."""
    return bool(config.get("addition_embed_type") == "text_time")


def text_width(config: Any) -> Any:
    """D, the width of a token's embedding; some U-Nets have a list, with one width for each block."""
    return config.cross_attention_dim if config.encoder_hid_dim_type is None else config.encoder_hid_dim


def pooled_width(config: Any) -> int:
    """P, the width of the pooled embedding that a U-Net of Stable Diffusion XL takes."""
    return int(config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim)


def check_sizes_unet(config: Any) -> None:
    """Raise ConfigError if the U-Net takes `TextAndSizes` of other shapes than Stable Diffusion XL's."""
    numbers = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim, text_width(config)
    if not all(isinstance(number, int) for number in numbers) or pooled_width(config) < 1:
        raise ConfigError(
            "The U-Net has projection_class_embeddings_input_dim {}, addition_time_embed_dim {} and a text width of "
            "{}; expected numbers with room for a pooled embedding beside six sizes.".format(*numbers)
        )


def as_keywords(
    config: Any, cond: Tensor, dtype: torch.dtype, attention_options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The keyword arguments of a U-Net's call.

    Args:
        config: the U-Net's.
        cond: (N,) int64 class labels, (N, L, D) text embeddings, or (N, F) packed `TextAndSizes`.
        dtype: of the U-Net.
        attention_options: diffusers' `cross_attention_kwargs`, for a UNet2DConditionModel.
    """
    if not is_text_unet(config):
        return {"class_labels": cond}
    options = None if attention_options is None else dict(attention_options)
    if not takes_sizes(config):
        return {"encoder_hidden_states": cond.to(dtype), "cross_attention_kwargs": options}
    text, pooled, sizes = TextAndSizes.unpack(cond, config)
    return {
        "encoder_hidden_states": text.to(dtype),
        "cross_attention_kwargs": options,
        "added_cond_kwargs": {"text_embeds": pooled.to(dtype), "time_ids": sizes},
    }
