"""The laws that pipelines are sampled from: one family for each kind of scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from diffusers import DDPMScheduler, SchedulerMixin
from torch import nn

from asd_policy.core import Schedule
from asd_policy.images.scheduler import ddpm_schedule, ddpm_scheduler, make_denoiser
from asd_policy.images.unet import UnetNetwork


class StepsAsked(NamedTuple):
    """The steps that a call asks for, as diffusers names them."""

    num_inference_steps: int | None = None
    timesteps: Sequence[int] | None = None
    eta: float = 0.0


class Law(NamedTuple):
    """What a call draws from."""

    chain: Schedule
    settings: Mapping[str, Any]
    """The scheduler's configuration. Together with the chain it determines the denoiser."""
    denoiser: Callable[[UnetNetwork], nn.Module]
    """Makes the denoiser of a network."""


class Family(Protocol):
    """How the schedulers of one kind are sampled."""

    def takes(self, scheduler: SchedulerMixin, asked: StepsAsked) -> bool:
        """Whether this family samples the scheduler."""
        ...

    def law(self, scheduler: SchedulerMixin, asked: StepsAsked) -> Law:
        """The law of a call.

        Raises:
            ConfigError: on a scheduler or steps that this package does not sample exactly.
        """
        ...


@dataclass(frozen=True)
class DdpmOfBetas:
    """Every scheduler whose betas a DDPM can have: the DDPM with those betas is sampled.

    Attributes:
        clips_by_default: whether a scheduler without `clip_sample` becomes one that clips, as DDPMScheduler does.
    """

    clips_by_default: bool

    def scheduler(self, scheduler: SchedulerMixin) -> DDPMScheduler:
        """The DDPM with the betas of a scheduler. Raises ConfigError as `ddpm_scheduler`."""
        if self.clips_by_default:
            return ddpm_scheduler(scheduler)
        return ddpm_scheduler(scheduler, clip_sample=getattr(scheduler, "config", {}).get("clip_sample", False))

    def takes(self, scheduler: SchedulerMixin, asked: StepsAsked) -> bool:
        """As `Family.takes`."""
        return True

    def law(self, scheduler: SchedulerMixin, asked: StepsAsked) -> Law:
        """As `Family.law`."""
        ddpm = self.scheduler(scheduler)
        schedule = ddpm_schedule(ddpm, asked.num_inference_steps, asked.timesteps)
        return Law(schedule, ddpm.config, partial(make_denoiser, scheduler=ddpm, schedule=schedule))
