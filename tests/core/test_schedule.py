"""The chain's coefficients and the plain samplers, step for step against diffusers."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
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


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", None])
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_strided_step_is_diffusers(monkeypatch, spacing, offset, variance):
    """Mean and standard deviation of each step, whether or not the steps divide the training timesteps."""
    x, output = torch.tensor([[0.7]]), torch.tensor([[0.3]])
    for num_steps in (1, 7, 10, 23, 30, 64):
        scheduler = DDPMScheduler(
            num_train_timesteps=100,
            beta_schedule="squaredcos_cap_v2",
            timestep_spacing=spacing,
            steps_offset=offset,
            variance_type=variance,
            clip_sample=False,
        )
        scheduler.set_timesteps(num_steps)
        schedule = Schedule.from_diffusers(scheduler, num_steps)
        assert schedule.timesteps.tolist() == scheduler.timesteps.tolist()
        x0 = EpsilonDenoiser(lambda x, t, cond: output, schedule, clip=None)
        for k, t in enumerate(scheduler.timesteps):
            means = []
            for noise in (0.0, 1.0):
                monkeypatch.setattr(
                    scheduling_ddpm, "randn_tensor", lambda shape, noise=noise, **_: torch.full(shape, noise)
                )
                means.append(scheduler.step(output, t, x).prev_sample)
            mean = schedule.a[k] * x + schedule.b[k] * x0(x, t.reshape(1))
            torch.testing.assert_close(mean.float(), means[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(schedule.s[k].float(), (means[1] - means[0]).squeeze(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("total", [20, 100, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_has_the_timesteps_of_diffusers_or_is_refused(spacing, total):
    scheduler = DDPMScheduler(num_train_timesteps=total, timestep_spacing=spacing)
    schedule = Schedule.from_diffusers(scheduler)
    refused = 0
    for num_steps in range(1, total + 1):
        scheduler.set_timesteps(num_steps)
        expected = scheduler.timesteps.tolist()
        if len(expected) != num_steps:  # diffusers' own list ends with timestep -1
            assert expected[-1] == -1
            refused += 1
            with pytest.raises(ConfigError, match="rounds trailing timesteps"):
                schedule.with_num_steps(num_steps)
        else:
            assert schedule.with_num_steps(num_steps).timesteps.tolist() == expected
    assert refused < 0.1 * total


@pytest.mark.parametrize("prediction", DENOISERS)
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)])
def test_ddim_agrees_with_diffusers(spacing, offset, to_one, clipped, eta, prediction):
    for num_steps in (5, 7, 10, 30):
        scheduler = DDIMScheduler(
            num_train_timesteps=100,
            beta_schedule="squaredcos_cap_v2",
            timestep_spacing=spacing,
            steps_offset=offset,
            set_alpha_to_one=to_one,
            prediction_type=prediction,
        )
        scheduler.set_timesteps(num_steps)
        schedule = Schedule.from_diffusers(scheduler)
        tape = NoiseTape.draw(4, num_steps, SHAPE, torch.Generator().manual_seed(0))
        x = tape.start
        for k, t in enumerate(scheduler.timesteps):
            output = network(x, t.expand(4))
            step = scheduler.step(output, t, x, eta=eta, use_clipped_model_output=clipped, variance_noise=tape.xi[:, k])
            x = step.prev_sample
        got = sample_ddim(
            DENOISERS[prediction](network, schedule),
            schedule,
            SHAPE,
            4,
            generator=torch.Generator().manual_seed(0),
            num_steps=num_steps,
            eta=eta,
            use_clipped_model_output=clipped,
            set_alpha_to_one=to_one,
        )
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
        ({"trained_betas": "0.1"}, "betas must be"),
        ({"trained_betas": [0.1, float("nan")]}, "betas must be"),
        ({"trained_betas": [0.999999] * 20}, "float32 cannot tell"),
        ({"timestep_spacing": None}, "Unknown timestep spacing"),
        ({"beta_schedule": None}, "Unknown beta_schedule"),
        ({"steps_offset": None}, "steps_offset is None"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5"),
        ({"beta_start": None}, "beta_start is None"),
        ({"beta_end": "0.02"}, "beta_end is '0.02'"),
        ({"beta_end": float("nan")}, "beta_end is nan"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "FlowMatchEuler.* has no betas"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEuler.* has no betas"),
        (EDMEulerScheduler(), "EDMEuler.* has no betas"),
        (object(), "object has no betas"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.from_diffusers(config)


@pytest.mark.parametrize("num_steps", [0, -1, 101])
def test_bad_num_steps(num_steps):
    with pytest.raises(ConfigError, match="expected 1 to 100"):
        Schedule.from_betas(torch.full((100,), 0.02), num_steps=num_steps)


@pytest.mark.parametrize("offset", [-1, 40, 99])
def test_an_offset_beyond_the_training_timesteps_is_refused(offset):
    with pytest.raises(ConfigError, match=f"steps_offset {offset} with num_steps 10 asks for timesteps"):
        Schedule.from_diffusers({"num_train_timesteps": 100, "steps_offset": offset}, num_steps=10)


@pytest.mark.parametrize("timesteps", [[], [3, 5], [5, 5, 0], [100], [5, -1], [[5, 3]]])
def test_timesteps_that_are_no_chain_are_refused(timesteps):
    abar = Schedule.from_diffusers({"num_train_timesteps": 100}).alphas_cumprod
    with pytest.raises(ConfigError, match="timesteps must descend"):
        Schedule(abar, torch.tensor(timesteps, dtype=torch.int64))


@pytest.mark.parametrize("abar", [[], [0.9, 0.95], [0.9, 0.0], [1.0, 0.5], [0.9, float("nan")], [0.5, 0.5]])
def test_a_signal_that_does_not_fall_is_refused(abar):
    with pytest.raises(ConfigError, match="alphas_cumprod must fall"):
        Schedule(torch.tensor(abar, dtype=torch.float64), torch.tensor([0]))


def test_equal_schedules():
    config = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
    schedule = Schedule.from_diffusers(config)
    assert schedule == Schedule.from_diffusers(dict(config))
    assert hash(schedule) == hash(Schedule.from_diffusers(config))
    assert schedule == Schedule.from_diffusers(config | {"variance_type": None})
    others = [
        schedule.with_num_steps(10),
        Schedule.from_diffusers(config | {"variance_type": "fixed_large"}),
        Schedule.from_diffusers(config | {"beta_schedule": "linear"}),
        Schedule.from_diffusers(config | {"num_train_timesteps": 50}),
        "schedule",
    ]
    assert all(schedule != other for other in others)
    assert len({schedule, Schedule.from_diffusers(config), *others}) == 1 + len(others)
