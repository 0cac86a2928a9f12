"""The configuration of a policy's diffusion scheduler."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from asd_policy.checks import expect, is_count, is_number
from asd_policy.core import Schedule
from asd_policy.errors import ConfigError
from asd_policy.records import LATER

MAX_TIMESTEPS = 100_000
"""A limit on memory and reading time."""
SAMPLING = ("timestep_spacing", "steps_offset", "set_alpha_to_one", "use_clipped_model_output")
"""Fields of SchedulerConfig that matter only with fewer sampling steps. Older files lack them."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The diffusion scheduler, in the vocabulary of diffusers' DDPMScheduler.

    The fields of `SAMPLING` matter only with fewer sampling steps than `num_train_timesteps`. `timestep_spacing` and
    `steps_offset` choose the timesteps. `set_alpha_to_one` sets the alpha_bar after DDIM's last step to 1.
    `use_clipped_model_output` makes DDIM recompute the noise from the clipped sample.

    Raises:
        ConfigError: naming the field that cannot be used.
    """

    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    variance_type: str = "fixed_small"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    timestep_spacing: str = field(default="leading", metadata=LATER)
    steps_offset: int = field(default=0, metadata=LATER)
    set_alpha_to_one: bool = field(default=True, metadata=LATER)
    use_clipped_model_output: bool = field(default=True, metadata=LATER)

    def __post_init__(self) -> None:
        timesteps = self.num_train_timesteps
        few = is_count(timesteps) and timesteps <= MAX_TIMESTEPS
        expect(few, "scheduler.num_train_timesteps", timesteps, f"a positive integer up to {MAX_TIMESTEPS}")
        offset = self.steps_offset
        fits = is_count(offset, least=0) and offset < timesteps
        expect(fits, "scheduler.steps_offset", offset, f"an integer from 0 to {timesteps - 1}")
        for name in ("clip_sample", "set_alpha_to_one", "use_clipped_model_output"):
            expect(isinstance(getattr(self, name), bool), f"scheduler.{name}", getattr(self, name), "true or false")
        for name in ("beta_start", "beta_end", "clip_sample_range"):
            expect(is_number(getattr(self, name)), f"scheduler.{name}", getattr(self, name), "a finite number")
        for name in ("beta_schedule", "variance_type", "timestep_spacing"):
            expect(isinstance(getattr(self, name), str), f"scheduler.{name}", getattr(self, name), "a name")
        expect(
            0 < self.beta_start <= self.beta_end < 1,
            "scheduler.beta_start, beta_end",
            (self.beta_start, self.beta_end),
            "0 < beta_start <= beta_end < 1",
        )
        expect(
            self.prediction_type in ("epsilon", "v_prediction", "sample"),
            "scheduler.prediction_type",
            self.prediction_type,
            "'epsilon', 'v_prediction' or 'sample'",
        )
        expect(self.clip_sample_range > 0, "scheduler.clip_sample_range", self.clip_sample_range, "positive")
        try:
            Schedule.from_diffusers(dataclasses.asdict(self))
        except ConfigError as error:
            raise ConfigError(
                f"scheduler.beta_schedule, variance_type or timestep_spacing cannot be used: {error}"
            ) from error
