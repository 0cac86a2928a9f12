"""The laws that pipelines are sampled from: one family for each kind of scheduler."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, SchedulerMixin
from torch import nn

from asd_policy.core import (
    SIGMA_DENOISERS,
    Chain,
    Schedule,
    ddim_chain,
    euler_ancestral_chain,
    unclipped_ddim,
)
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import as_config_errors, check_name, finite, whole
from asd_policy.images.scheduler import check_own_methods, ddpm_schedule, ddpm_scheduler, make_denoiser
from asd_policy.images.unet import UnetNetwork

KEPT_STEPS = 50
"""Steps of a kept scheduler where a call names none, as in diffusers' pipelines."""


class StepsAsked(NamedTuple):
    """The steps that a call asks for, as diffusers names them."""

    num_inference_steps: int | None = None
    timesteps: Sequence[int] | None = None
    eta: float = 0.0


class Law(NamedTuple):
    """What a call draws from."""

    chain: Chain
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


class EulerAncestral:
    """diffusers' EulerAncestralDiscreteScheduler is kept: its sigmas, its timesteps, its noise.

    Refused: clean-sample predictions, with which diffusers' scheduler cannot step; zero terminal SNR; and steps at
    timesteps outside training.
    """

    def takes(self, scheduler: SchedulerMixin, asked: StepsAsked) -> bool:
        """As `Family.takes`."""
        return isinstance(scheduler, EulerAncestralDiscreteScheduler)

    def law(self, scheduler: EulerAncestralDiscreteScheduler, asked: StepsAsked) -> Law:
        """As `Family.law`."""
        methods = ("step", "set_timesteps", "scale_model_input", "init_noise_sigma")
        check_own_methods(scheduler, EulerAncestralDiscreteScheduler, methods)
        prediction = scheduler.config.prediction_type
        check_name("prediction_type of an EulerAncestralDiscreteScheduler", prediction, SIGMA_DENOISERS)
        schedule = Schedule.from_diffusers(scheduler)
        ready = copy.deepcopy(scheduler)  # the pipeline's own is not changed
        with as_config_errors():
            ready.set_timesteps(_kept_steps(asked))
        total, first, last = len(schedule.alphas_cumprod), float(ready.timesteps[0]), float(ready.timesteps[-1])
        if not 0 <= last <= first <= total - 1:
            raise ConfigError(
                f"steps_offset {schedule.steps_offset} with num_inference_steps {_kept_steps(asked)} and spacing "
                f"{schedule.spacing!r} asks for timesteps {last:.0f} to {first:.0f} of {total} training timesteps. "
                "Take another number of steps."
            )
        chain = euler_ancestral_chain(ready)
        return Law(chain, scheduler.config, partial(SIGMA_DENOISERS[prediction], schedule=schedule))


class DdimWithNoise:
    """diffusers' DDIMScheduler is kept in calls with eta > 0. With eta = 0 it has no noise to speculate on.

    Refused: thresholding, whose step needs the prediction with and without it.
    """

    def takes(self, scheduler: SchedulerMixin, asked: StepsAsked) -> bool:
        """As `Family.takes`."""
        return isinstance(scheduler, DDIMScheduler) and finite("eta", asked.eta, 0, 1) > 0

    def law(self, scheduler: DDIMScheduler, asked: StepsAsked) -> Law:
        """As `Family.law`."""
        check_own_methods(scheduler, DDIMScheduler, ("step", "set_timesteps", "_get_variance"))
        config, eta = scheduler.config, float(asked.eta)
        if config.thresholding:
            raise ConfigError("The DDIMScheduler has thresholding=True, which is not supported for DDIM with noise.")
        schedule, steps = Schedule.from_diffusers(scheduler), _kept_steps(asked)
        chain = ddim_chain(schedule, steps, eta, config.set_alpha_to_one)

        def denoiser(network: UnetNetwork) -> nn.Module:
            clipping = make_denoiser(network, scheduler, schedule)
            # DDIMPipeline and Stable Diffusion leave use_clipped_model_output at False.
            unclipped = unclipped_ddim(clipping, schedule, steps, eta, config.set_alpha_to_one)
            return cast(nn.Module, unclipped)

        return Law(chain, config, denoiser)


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
        """As `Family.law`. ConfigError too on an `eta` that the scheduler has a use for and a DDPM has not."""
        ddpm = self.scheduler(scheduler)
        if asked.eta != 0 and "eta" in inspect.signature(scheduler.step).parameters:
            raise ConfigError(
                f"eta is {asked.eta!r}, and the chain of a {type(scheduler).__name__} is not sampled: expected eta=0, "
                "which samples the DDPM with its betas, or a DDIMScheduler."
            )
        schedule = ddpm_schedule(ddpm, asked.num_inference_steps, asked.timesteps)
        return Law(schedule, ddpm.config, partial(make_denoiser, scheduler=ddpm, schedule=schedule))


KEPT: tuple[Family, ...] = (EulerAncestral(), DdimWithNoise())
"""The families whose schedulers are sampled as they are."""


def law_of(scheduler: SchedulerMixin, asked: StepsAsked, otherwise: DdpmOfBetas) -> Law:
    """The law of a call on a pipeline with this scheduler: its own if it is kept, else that of `otherwise`.

    Raises:
        ConfigError: as `Family.law`.
    """
    family: Family = next((family for family in KEPT if family.takes(scheduler, asked)), otherwise)
    return family.law(scheduler, asked)


def law_at_construction(scheduler: SchedulerMixin, window: Window, otherwise: DdpmOfBetas) -> Law:
    """A law of the scheduler. It raises what would fail at the first call.

    Args:
        window: a table of windows fixes the number of steps.
    """
    steps = len(window) if isinstance(window, tuple) else None
    kept = any(family.takes(scheduler, StepsAsked()) for family in KEPT)
    return law_of(scheduler, StepsAsked(1 if kept and steps is None else steps), otherwise)


def warn_of_ddim(scheduler: SchedulerMixin, asked: StepsAsked) -> None:
    """Warn that a DDIMScheduler without noise is not what is sampled."""
    if isinstance(scheduler, DDIMScheduler) and asked.eta == 0:
        warnings.warn(
            "The pipeline's DDIMScheduler draws no noise with eta=0, so its steps cannot be speculated on. The DDPM "
            "with its betas is sampled in its place. Pass eta > 0 to sample DDIM's own chain, or set pipe.scheduler = "
            "asd_policy.images.ddpm_scheduler(pipe.scheduler) if the DDPM is meant.",
            stacklevel=4,  # the caller of a pipeline's call, which torch.no_grad wraps
        )


def _kept_steps(asked: StepsAsked) -> int:
    """The number of steps of a kept scheduler. Raises ConfigError on timesteps, which diffusers refuses too."""
    if asked.timesteps is not None:
        raise ConfigError("timesteps is given, and the pipeline's scheduler takes none: pass num_inference_steps.")
    return KEPT_STEPS if asked.num_inference_steps is None else whole("num_inference_steps", asked.num_inference_steps)
