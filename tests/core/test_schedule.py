"""The chain's coefficients and the plain samplers, step for step against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from asd_policy.core import DENOISERS, EpsilonDenoiser, NoiseTape, Schedule, sample_ddim, sample_ddpm
from asd_policy.errors import ConfigError

SHAPE = (3, 2)


def network(x, t, cond=None):
    """Any smooth function of state and time."""
    return torch.sin(2 * x + 0.01 * t.view(-1, 1, 1)) + 0.1 * x.flip(-1)


def diffusers_ddpm(scheduler, tape, monkeypatch):
    """diffusers' own loop, its noise read from our tape."""
    rows = iter(tape.xi.unbind(1))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(rows))
    x = tape.start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), t, x).prev_sample
    return x


@pytest.mark.parametrize(
    ("T", "num_steps", "beta_schedule", "variance", "prediction", "spacing"),
    [
        (100, None, "squaredcos_cap_v2", "fixed_small", "epsilon", "leading"),
        (1000, None, "linear", "fixed_small", "epsilon", "leading"),
        (1000, None, "scaled_linear", "fixed_large", "v_prediction", "leading"),
        (100, 25, "squaredcos_cap_v2", "fixed_small_log", "sample", "leading"),
        (1000, 70, "linear", "fixed_large", "epsilon", "linspace"),
        (1000, 50, "scaled_linear", "fixed_small", "v_prediction", "trailing"),
    ],
)
def test_ddpm_agrees_with_diffusers(monkeypatch, T, num_steps, beta_schedule, variance, prediction, spacing):
    scheduler = DDPMScheduler(
        num_train_timesteps=T,
        beta_schedule=beta_schedule,
        variance_type=variance,
        prediction_type=prediction,
        timestep_spacing=spacing,
        clip_sample=True,
    )
    if num_steps is not None:
        scheduler.set_timesteps(num_steps)
    schedule = Schedule.from_diffusers(scheduler, num_steps=num_steps)
    assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
    tape = NoiseTape.draw(4, schedule.num_steps, SHAPE, torch.Generator().manual_seed(0))
    expected = diffusers_ddpm(scheduler, tape, monkeypatch)
    denoiser = DENOISERS[prediction](network, schedule, clip=1.0)
    got = sample_ddpm(denoiser, schedule, SHAPE, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("num_steps", [5, 10, 100])
def test_ddim_agrees_with_diffusers(num_steps):
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
    scheduler = DDIMScheduler(**config)
    scheduler.set_timesteps(num_steps)
    schedule = Schedule.from_diffusers(config)
    x = NoiseTape.draw(4, num_steps, SHAPE, torch.Generator().manual_seed(0)).start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(4)), t, x, use_clipped_model_output=True).prev_sample
    denoiser = EpsilonDenoiser(network, schedule)
    got = sample_ddim(denoiser, schedule, SHAPE, 4, generator=torch.Generator().manual_seed(0), num_steps=num_steps)
    torch.testing.assert_close(got, x, rtol=2e-4, atol=2e-4)


def test_ddim_with_eta_one_and_all_steps_is_ddpm():
    """Song et al. 2021, section 4.1: eta = 1 adds exactly the DDPM's small variance."""
    schedule = Schedule.from_diffusers({"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"})
    denoiser = EpsilonDenoiser(network, schedule)
    ddpm = sample_ddpm(denoiser, schedule, SHAPE, 4, generator=torch.Generator().manual_seed(0))
    ddim = sample_ddim(denoiser, schedule, SHAPE, 4, generator=torch.Generator().manual_seed(0), num_steps=50, eta=1.0)
    torch.testing.assert_close(ddim, ddpm, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoidal"}, "Available: linear, scaled_linear, squaredcos_cap_v2"),
        ({"variance_type": "fixed_smal"}, "Did you mean 'fixed_small'"),
        ({"variance_type": "learned_range"}, "Unknown variance"),
        ({"timestep_spacing": "quadratic"}, "Unknown timestep spacing"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"trained_betas": [0.1, 1.5]}, "betas must be"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.from_diffusers(config)


@pytest.mark.parametrize("num_steps", [0, -1, 101])
def test_bad_num_steps(num_steps):
    with pytest.raises(ConfigError, match="expected 1 to 100"):
        Schedule.from_betas(torch.full((100,), 0.02), num_steps=num_steps)
