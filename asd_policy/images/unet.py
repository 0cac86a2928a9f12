"""A diffusers U-Net and scheduler as a denoiser of the core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from asd_policy.core import DENOISERS, Schedule
from asd_policy.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class UnetNetwork:
    """A U-Net in the core's convention: (x (N, C, H, W), t (N,), cond (N, G, ...) or None) -> prediction (N, C, H, W).

    cond holds class labels for a UNet2DModel, (N, G) int64, and text embeddings for a UNet2DConditionModel,
    (N, G, L, D). G is 1, or 2 for classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598):
    what to move away from, then what to move toward. Both halves go through the U-Net in one batch.

    Attributes:
        guidance_scale: how far to move, 1 for no farther than the second half itself; nothing where G is 1.
        max_states: rows that one call of the U-Net may have, both halves counted; None for any number. A batch of more
            is cut into several calls, one after the other. They do not wait for each other's results, so `rounds`
            counts them as one: with several devices, or more memory, they would run at the same time.
    """

    unet: UNet2DModel | UNet2DConditionModel
    guidance_scale: float = 1.0
    max_states: int | None = None

    def __post_init__(self) -> None:
        config = self.unet.config
        if config.in_channels != config.out_channels:
            raise ConfigError(
                f"The U-Net takes {config.in_channels} channels and returns {config.out_channels}; expected as many. "
                "Networks that predict a variance, or are given a mask beside the image, are not supported."
            )
        if self.max_states is not None and self.max_states < 1:
            raise ConfigError(f"max_states is {self.max_states}; expected at least 1, or None for any number.")

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        if self.max_states is None:
            return self._predict(x, t, cond)
        halves = 1 if cond is None else cond.shape[1]
        size = max(1, self.max_states // halves)
        conds = [None] * len(x) if cond is None else cond.split(size)
        return torch.cat([self._predict(*part) for part in zip(x.split(size), t.split(size), conds, strict=False)])

    def _predict(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        x = x.to(self.unet.dtype)
        if cond is None:
            return self.unet(x, t).sample.float()
        halves = cond.shape[1]
        # By its configuration: a compiled U-Net is of another class.
        name = "encoder_hidden_states" if "cross_attention_dim" in self.unet.config else "class_labels"
        conditions = {name: cond.transpose(0, 1).flatten(0, 1)}
        output = self.unet(x.repeat(halves, 1, 1, 1), t.repeat(halves), **conditions).sample.float()
        if halves == 1:
            return output
        away, toward = output.chunk(2)
        return away + self.guidance_scale * (toward - away)


class Thresholded(nn.Module):
    """Dynamic thresholding of a denoiser's predictions (Saharia et al. 2022, section 2.3).

    A sample's values are cut at a quantile of their magnitude, if that is above 1, and divided by it
    (https://arxiv.org/abs/2205.11487).
    """

    clip = 1.0  # where the thresholded predictions lie

    def __init__(self, denoiser: nn.Module, ratio: float, max_value: float):
        super().__init__()
        self.denoiser = denoiser
        self.ratio = ratio
        self.max_value = max_value

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (N, *E), t (N,) int64, cond (N, ...) or None -> x0 (N, *E)."""
        x0 = self.denoiser(x, t, cond)
        magnitude = torch.quantile(x0.flatten(1).abs(), self.ratio, dim=1).clamp(1, self.max_value)
        limit = magnitude.view((-1,) + (1,) * (x.ndim - 1))
        return x0.clamp(-limit, limit) / limit


def ddpm_scheduler(scheduler: SchedulerMixin, **overrides: object) -> DDPMScheduler:
    """The DDPM over the diffusion that a pipeline's scheduler was made for, as `DDPMScheduler.from_config` reads it.

    Args:
        overrides: entries of the configuration to replace.

    Raises:
        ConfigError: if the scheduler belongs to another family, such as flow matching.
    """
    if DDPMScheduler not in getattr(scheduler, "compatibles", ()):
        raise ConfigError(
            f"{type(scheduler).__name__} has no DDPM with the same betas; expected DDPMScheduler or one of the "
            "schedulers that diffusers lists as its compatibles, such as DDIMScheduler or PNDMScheduler."
        )
    return DDPMScheduler.from_config(scheduler.config, **overrides)


def make_denoiser(network: UnetNetwork, scheduler: DDPMScheduler, schedule: Schedule) -> nn.Module:
    """The network's clean-sample predictions, clipped or thresholded as the scheduler would.

    Raises:
        ConfigError: on a prediction type that does not exist.
    """
    config = scheduler.config
    if config.prediction_type not in DENOISERS:
        raise UnknownNameError("prediction_type", config.prediction_type, DENOISERS)
    make = DENOISERS[config.prediction_type]
    if config.thresholding:
        denoiser = make(network, schedule, clip=None)
        return Thresholded(denoiser, config.dynamic_thresholding_ratio, config.sample_max_value)
    return make(network, schedule, clip=config.clip_sample_range if config.clip_sample else None)
