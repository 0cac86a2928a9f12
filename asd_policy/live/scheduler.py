"""The chain of a live scheduler: recognised by its configuration, and checked against its own `step`."""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.core import DENOISERS, Schedule
from asd_policy.core.denoiser import AffineDenoiser, Network
from asd_policy.errors import ConfigError, UnknownNameError

TOLERANCE = 1e-3
"""Largest relative difference of a step. The scheduler computes its coefficients in float32."""


class Chain(NamedTuple):
    """The DDPM of a live scheduler."""

    schedule: Schedule
    prediction_type: str
    clip: float | None

    def denoiser(self, network: Network) -> AffineDenoiser:
        """The network's predictions of the clean sample, clipped as the scheduler clips them."""
        return DENOISERS[self.prediction_type](network, self.schedule, self.clip)


def chain_of(scheduler: Any, num_steps: int, as_ddpm: bool = False) -> Chain:
    """The chain that a policy's loop draws from.

    Args:
        scheduler: a diffusers scheduler. It is not changed.
        num_steps: K, the steps that the policy's loop takes.
        as_ddpm: take the DDPM of a DDIM scheduler's betas, in all training steps: another law.

    Raises:
        ConfigError: if the scheduler is no DDPM, or its `step` differs from the DDPM of its configuration.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", None)
    if config is None or not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"The policy's noise_scheduler is a {name}; expected a scheduler of diffusers.")
    deterministic = "eta" in signature(scheduler.step).parameters
    if deterministic and not as_ddpm:
        raise ConfigError(
            f"The policy samples with a {name} in {num_steps} steps. DDIM with eta = 0 adds no noise, so there is "
            "nothing to speculate on. as_ddpm=True samples the DDPM of its betas in all "
            f"{config.get('num_train_timesteps')} training steps instead, which is another law."
        )
    if not deterministic and as_ddpm:
        raise ConfigError(f"as_ddpm=True replaces a DDIM scheduler; the policy samples with a {name} already.")
    if config.get("thresholding"):
        raise ConfigError(f"The policy's {name} has thresholding=True, which is not supported.")
    if config.get("prediction_type") not in DENOISERS:
        raise UnknownNameError("prediction_type of the scheduler", config.get("prediction_type"), DENOISERS)
    schedule = Schedule.from_diffusers(scheduler, None if as_ddpm else num_steps)
    clip = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", True) else None
    chain = Chain(schedule, config["prediction_type"], clip)
    if not as_ddpm:
        _check_steps(scheduler, chain)
    return chain


def fingerprint(scheduler: Any, num_steps: int) -> tuple[Any, ...]:
    """Equal for equal chains: `chain_of` need not be called again while it stays the same."""
    levels = getattr(scheduler, "alphas_cumprod", None)
    version = (id(levels), levels._version) if isinstance(levels, Tensor) and not levels.is_inference() else id(levels)
    return id(scheduler), repr(dict(scheduler.config)), version, num_steps


def _check_steps(scheduler: Any, chain: Chain) -> None:
    """Raise ConfigError unless each of the scheduler's own steps equals the chain's, for random inputs and one noise.

    This finds schedulers of other families, subclasses with another `step`, and noise levels that were changed.
    """
    name, schedule = type(scheduler).__name__, chain.schedule
    own = copy.deepcopy(scheduler)  # set_timesteps would change the policy's
    with torch.device("cpu"):
        own.set_timesteps(schedule.num_steps)
    timesteps = [int(t) for t in own.timesteps]
    if timesteps != schedule.timesteps.tolist():
        raise ConfigError(
            f"The policy's {name} takes the timesteps {timesteps}; the DDPM of its configuration takes "
            f"{schedule.timesteps.tolist()}."
        )
    generator = torch.Generator("cpu").manual_seed(0)
    sample, output = torch.randn(2, 1, 4, 3, generator=generator, device="cpu", dtype=torch.float32)
    denoiser = chain.denoiser(_no_network)
    for k, (t, a, b, s) in enumerate(zip(timesteps, schedule.a, schedule.b, schedule.s, strict=True)):
        x0 = denoiser.to_clean(sample, torch.tensor([t], device="cpu"), output)
        noise = torch.randn(sample.shape, generator=_seeded(k), device="cpu", dtype=torch.float32)
        expected = a.float() * sample + b.float() * x0 + s.float() * noise
        try:
            got = own.step(output, own.timesteps[k], sample, generator=_seeded(k)).prev_sample
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            raise ConfigError(f"The policy's {name} cannot take a step as a DDPM's does: {error!r:.200}.") from error
        if not bool(((got - expected).abs() <= TOLERANCE * (1 + expected.abs().max())).all()):
            raise ConfigError(
                f"The policy's {name} is no DDPM, or was changed since it was made: its step at timestep {t} differs "
                f"from the DDPM of its configuration by up to {float((got - expected).abs().max()):.2g}."
            )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def _no_network(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
    raise NotImplementedError  # only the conversion of outputs is used
