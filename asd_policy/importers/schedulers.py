"""Converts diffusers' scheduler settings in other libraries' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.policies.config import SchedulerConfig

KINDS = ("DDPM", "DDIM")
DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
"""diffusers' defaults of DDPMScheduler and DDIMScheduler, for settings that a file leaves out."""

FIXED: Mapping[str, Any] = {
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "predict_epsilon": True,
}
"""Settings that are supported with these values only."""

UNUSED = ("dynamic_thresholding_ratio", "sample_max_value")  # ignored without thresholding
NULLS: Mapping[str, Any] = {
    "variance_type": "fixed_small",
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "predict_epsilon": True,
    "set_alpha_to_one": False,
}
"""diffusers' values for a null, for the settings that accept one."""


def read_scheduler(
    kind: str, settings: Mapping[str, Any], steps: int | None, where: str
) -> tuple[SchedulerConfig, tuple[str, ...]]:
    """The scheduler's configuration, and notes on how the file's library samples differently.

    Args:
        kind: the name of diffusers' class, with or without "Scheduler".
        settings: its arguments. Missing ones take diffusers' defaults.
        steps: the number of sampling steps in the file; None for all training steps.

    Raises:
        CheckpointError: on an unsupported scheduler or setting; the message names it.
    """
    name = str(kind).removesuffix("Scheduler")
    if name not in KINDS:
        raise CheckpointError(f"{where}: the scheduler {str(kind)[:100]!r} is not supported; expected DDPM or DDIM.")
    values = {
        key: NULLS.get(key) if value is None else value for key, value in settings.items() if not key.startswith("_")
    }
    known = DEFAULTS.keys() | FIXED.keys() | set(UNUSED)
    wrong = {key: value for key, value in values.items() if key not in known or value != FIXED.get(key, value)}
    if wrong:
        told = ", ".join(f"{key} = {str(value)[:100]}" for key, value in sorted(wrong.items()))
        raise CheckpointError(f"{where}: a scheduler with {told} is not supported; expected {dict(FIXED)}, or nothing.")
    chosen = {**DEFAULTS} | {key: value for key, value in values.items() if key in DEFAULTS}
    try:
        scheduler = SchedulerConfig(**chosen, use_clipped_model_output=False)  # no library passes it to `step`
    except ConfigError as error:
        raise CheckpointError(f"{where}: its scheduler cannot be sampled: {error}") from error
    return scheduler, _notes(name, scheduler, steps, where)


def _notes(name: str, scheduler: SchedulerConfig, steps: int | None, where: str) -> tuple[str, ...]:
    total = scheduler.num_train_timesteps
    steps = total if steps is None else steps
    if type(steps) is not int or not 1 <= steps <= total:
        raise CheckpointError(f"{where} samples in {steps!r:.100} steps; expected 1 to {total}.")
    if name == "DDIM":
        return (
            f'The file samples with DDIM in {steps} steps; sampler="ddim", num_steps={steps} draws what the file\'s '
            "library draws.",
        )
    if steps != total:
        return (f"The file samples with {steps} of {total} DDPM steps; here all {total} are taken.",)
    return ()
