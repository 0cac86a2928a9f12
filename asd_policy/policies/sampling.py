"""Makes the sampler of a policy's chunks from its model and a spec."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from asd_policy.core import Sampler, SamplerOptions, SamplerSpec
from asd_policy.core.capture import make_capture
from asd_policy.core.samplers import with_options
from asd_policy.policies.config import SchedulerConfig
from asd_policy.policies.model import PolicyModel


def build_sampler(model: PolicyModel, spec: SamplerSpec) -> Sampler:
    """The spec's sampler for the model's chunks. Raises ConfigError as `SamplerSpec.build`."""
    denoiser = model.denoiser(make_capture(spec.capture).compiles(model.device))
    filled = as_trained(spec, model.config.scheduler)
    return filled.build(denoiser, model.schedule, model.event_shape, model.device)


def as_trained(spec: SamplerSpec, scheduler: SchedulerConfig) -> SamplerSpec:
    """The spec with its open options (None) taken from the scheduler that the model was trained with.

    These are the `use_clipped_model_output` and `set_alpha_to_one` of DDIM, with or without speculation.
    """
    left_open = [field.name for field in fields(cast(Any, spec)) if getattr(spec, field.name) is None]
    known: dict[str, Any] = {name: getattr(scheduler, name) for name in left_open if hasattr(scheduler, name)}
    return with_options(spec, **cast(SamplerOptions, known))
