"""The DDPM of a pipeline's scheduler: its chain and the bounds of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, SchedulerMixin
from torch import Tensor, nn

from asd_policy.core import DENOISERS, Schedule
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import as_config_errors, check_name, finite, whole
from asd_policy.images.unet import UnetNetwork

STEPS = ("step", "set_timesteps", "previous_timestep", "_get_variance", "_threshold_sample")
"""Methods of DDPMScheduler that define the chain."""


def ddpm_scheduler(scheduler: SchedulerMixin, **overrides: object) -> DDPMScheduler:
    """The DDPM with the betas of a pipeline's scheduler, as `DDPMScheduler.from_config` makes it.

    Settings that a DDPM does not have, such as `use_karras_sigmas` and `final_sigmas_type`, are ignored.

    Args:
        overrides: entries of the configuration to replace.

    Raises:
        ConfigError: if the scheduler belongs to another family, such as flow matching, or has been changed since it
            was made.
    """
    name = type(scheduler).__name__
    if DDPMScheduler not in getattr(scheduler, "compatibles", ()):
        raise ConfigError(
            f"{name} has no DDPM with the same betas; expected DDPMScheduler or one of the "
            "schedulers that diffusers lists as its compatibles, such as DDIMScheduler or PNDMScheduler."
        )
    config: dict[str, Any] = dict(scheduler.config)
    if config.get("use_flow_sigmas") or config.get("timestep_type", "discrete") != "discrete":
        raise ConfigError(f"{name} tells its network continuous times or flows; a DDPM has discrete timesteps.")
    if isinstance(scheduler, DDPMScheduler):
        check_own_methods(scheduler, DDPMScheduler, STEPS)
    if isinstance(scheduler, DDPMScheduler | DDPMParallelScheduler):
        # from_config skips entries left at the class's defaults, even if a pipeline has replaced them since.
        config.pop("_use_default_values", None)
    with as_config_errors(), torch.device("cpu"):  # its noise levels are made on torch's default device
        ddpm = DDPMScheduler.from_config(config, **overrides)
    _check_noise_levels(scheduler, ddpm)
    return ddpm


def check_own_methods(scheduler: SchedulerMixin, kind: type[SchedulerMixin], methods: Sequence[str]) -> None:
    """Raise ConfigError if a scheduler of diffusers' class `kind` has its own version of one of its `methods`."""
    own = [
        name for name in methods if getattr(type(scheduler), name) is not getattr(kind, name) or name in vars(scheduler)
    ]
    if own:
        raise ConfigError(
            f"{type(scheduler).__name__} has its own {', '.join(own)}, which would not be used; expected "
            f"{kind.__name__}'s."
        )


def _check_noise_levels(scheduler: SchedulerMixin, ddpm: DDPMScheduler) -> None:
    """Raise ConfigError if the scheduler's noise levels were changed after it was made."""
    actual = getattr(scheduler, "alphas_cumprod", None)
    if actual is None or ddpm.config.rescale_betas_zero_snr:  # the latter is refused with its own message
        return
    actual = actual.detach().to("cpu", torch.float32)
    if actual.shape != ddpm.alphas_cumprod.shape or not torch.allclose(
        actual, ddpm.alphas_cumprod, rtol=1e-4, atol=0, equal_nan=True
    ):
        raise ConfigError(
            f"The alphas_cumprod of the {type(scheduler).__name__} are not those of its configuration. Do not change "
            "them in place: make a scheduler with trained_betas."
        )


def ddpm_schedule(
    scheduler: DDPMScheduler, num_steps: int | None = None, timesteps: Sequence[int] | None = None
) -> Schedule:
    """The chain of `num_steps` steps, of all training timesteps if None, or of the given `timesteps`.

    Raises:
        ConfigError: on a `num_steps` that does not fit, `timesteps` that do not descend from below T to at least 0, or
            betas, a variance or a spacing that this package does not sample exactly.
    """
    schedule = Schedule.from_diffusers(scheduler)
    whole("steps_offset", schedule.steps_offset, least=0)
    if timesteps is None:
        return schedule.with_num_steps(None if num_steps is None else whole("num_inference_steps", num_steps))
    total = len(schedule.alphas_cumprod)
    with as_config_errors():
        chosen = torch.as_tensor(timesteps).cpu()
    whole_numbers = (
        chosen.ndim == 1 and len(chosen) > 0 and not chosen.is_floating_point() and chosen.dtype != torch.bool
    )
    if not whole_numbers or bool((chosen.diff() >= 0).any()) or not 0 <= int(chosen[-1]) <= int(chosen[0]) < total:
        raise ConfigError(f"timesteps is {timesteps!r}; expected whole numbers in descending order, {total - 1} to 0.")
    return replace(schedule, timesteps=chosen.long())


class Thresholded(nn.Module):
    """Dynamic thresholding of a denoiser's predictions (Saharia et al. 2022, section 2.3).

    A sample's values are clipped at a quantile of their magnitude, if that is above 1, and divided by it
    (https://arxiv.org/abs/2205.11487). Values that are not finite are left for the sampler to find.
    """

    clip = 1.0  # the bound of thresholded predictions

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
        return torch.where(x0.isfinite(), x0.clamp(-limit, limit) / limit, x0)


def make_denoiser(network: UnetNetwork, scheduler: DDPMScheduler | DDIMScheduler, schedule: Schedule) -> nn.Module:
    """The network's clean-sample predictions, clipped or thresholded as the scheduler's settings say.

    Raises:
        ConfigError: on an unknown prediction type, or a bound out of range.
    """
    config = scheduler.config
    check_name("prediction_type", config.prediction_type, DENOISERS)
    make = DENOISERS[config.prediction_type]
    if config.thresholding:
        denoiser = make(network, schedule, clip=None)
        ratio = finite("dynamic_thresholding_ratio", config.dynamic_thresholding_ratio, 0, 1)
        return Thresholded(denoiser, ratio, finite("sample_max_value", config.sample_max_value, 0))
    return make(
        network, schedule, clip=finite("clip_sample_range", config.clip_sample_range, 0) if config.clip_sample else None
    )
