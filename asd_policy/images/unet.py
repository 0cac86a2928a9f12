"""A diffusers U-Net with the core's call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.images.arguments import check_attention_options, whole
from asd_policy.images.conditions import as_keywords, check_sizes_unet, is_text_unet, takes_sizes

UNDERSTOOD = {
    "time_cond_proj_dim": (None,),  # the guidance scale, in consistency-distilled (LCM) networks
    "encoder_hid_dim_type": (None, "text_proj"),  # others project images, as IP adapters do
    "addition_embed_type": (None, "text", "text_time"),
    "class_embed_type": (None,),
}
"""Settings of a U-Net's conditioning -> the supported values."""


@dataclass(frozen=True)
class UnetNetwork:
    """A U-Net with the core's call: (x (N, C, H, W), t (N,), cond (N, G, ...) or None) -> prediction (N, C, H, W).

    cond holds class labels for a UNet2DModel, (N, G) int64; text embeddings for a UNet2DConditionModel, (N, G, L, D);
    and packed `TextAndSizes` for Stable Diffusion XL's, (N, G, F). G is 1, or 2 for classifier-free guidance (Ho &
    Salimans 2022, https://arxiv.org/abs/2207.12598): the condition to move away from, then the one to move toward.
    Both halves go through the U-Net in one batch.

    Attributes:
        guidance_scale: of classifier-free guidance; 1 returns the second half's prediction. Ignored if G is 1.
        max_states: most rows in one call of the U-Net, both halves counted; None for no limit. A larger batch is split
            into several calls. They are independent, so `rounds` counts them as one sequential call.
        guidance_rescale: how far a guided prediction is rescaled to the spread of its second half (Lin et al. 2024,
            section 3.4, https://arxiv.org/abs/2305.08891). Ignored if G is 1.
        attention_options: diffusers' `cross_attention_kwargs`, for a UNet2DConditionModel.

    Raises:
        ConfigError: on a U-Net that needs other inputs or predicts a variance, or an option that is out of range.
    """

    unet: UNet2DModel | UNet2DConditionModel
    guidance_scale: float = 1.0
    max_states: int | None = None
    guidance_rescale: float = 0.0
    attention_options: Mapping[str, Any] | None = None
    _scale: Tensor = field(init=False, repr=False, compare=False)  # a float would be a constant in compiled code

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scale", torch.tensor(float(self.guidance_scale), device="cpu"))
        config = self.unet.config
        for name, values in UNDERSTOOD.items():
            if config.get(name) not in values:
                raise ConfigError(
                    f"The U-Net has {name} {config[name]!r}: it needs inputs beside the image, the timestep and its "
                    "text or labels, and would be wrong without them. Use diffusers' own pipeline for it."
                )
        if takes_sizes(config):
            check_sizes_unet(config)
        if is_text_unet(config) and config.get("num_class_embeds") is not None:
            raise ConfigError(
                f"The U-Net takes text and num_class_embeds {config.num_class_embeds}; expected only one."
            )
        if config.in_channels != config.out_channels:
            raise ConfigError(
                f"The U-Net takes {config.in_channels} channels and returns {config.out_channels}; expected as many. "
                "Networks that predict a variance, or are given a mask beside the image, are not supported."
            )
        if self.max_states is not None:
            whole("max_states", self.max_states)
        check_attention_options(self.attention_options)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if self.max_states is None:
            return self._predict(x, t, cond)
        halves = 1 if cond is None else cond.shape[1]
        size = max(1, self.max_states // halves)
        conds = [None] * len(x) if cond is None else torch.split(cond, size)
        parts = zip(torch.split(x, size), torch.split(t, size), conds, strict=False)
        return torch.cat([self._predict(x, t, cond) for x, t, cond in parts])

    def _predict(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        x = x.to(self.unet.dtype)
        if cond is None:
            prediction: Tensor = self.unet(x, t).sample.float()
            return prediction
        halves = cond.shape[1]
        grouped = cond.transpose(0, 1).flatten(0, 1)
        keywords = as_keywords(self.unet.config, grouped, x.dtype, self.attention_options)
        output: Tensor = self.unet(x.repeat(halves, 1, 1, 1), t.repeat(halves), **keywords).sample.float()
        if halves == 1:
            return output
        away, toward = output.chunk(2)
        guided: Tensor = away + self._scale * (toward - away)
        if self.guidance_rescale > 0:
            guided = rescale_noise_cfg(guided, toward, self.guidance_rescale)
        return guided
