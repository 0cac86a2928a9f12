"""Each family of chains equals its reference step for step, on one noise tape."""

from itertools import pairwise

import diffusers
import pytest
import torch

from asd_policy.core import (
    SIGMA_DENOISERS,
    AsdSampler,
    EpsilonDenoiser,
    NoiseTape,
    Schedule,
    ancestral_chain,
    ddim_chain,
    euler_ancestral_chain,
    sample_chain,
    sample_ddim,
    unclipped_ddim,
)
from asd_policy.errors import ConfigError

B, SHAPE = 4, (5,)
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def net(x, t, cond):
    """Some smooth function, on the scale of a unit Gaussian."""
    return 0.6 * x + 0.1 * torch.sin(3 * x) + t.view(-1, 1) * 1e-3


def tape_of(steps):
    return NoiseTape.draw(B, steps, SHAPE, torch.Generator().manual_seed(0))


def on_one_tape(denoiser, chain, tape):
    return sample_chain(denoiser, chain, SHAPE, B, None, tape)


@pytest.mark.parametrize("steps", [1, 20, 50])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_is_diffusers(steps, spacing, set_alpha_to_one, clipped, eta):
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing=spacing,
        set_alpha_to_one=set_alpha_to_one,
        clip_sample_range=0.9,
    )
    scheduler.set_timesteps(steps)
    schedule, tape = Schedule.from_diffusers(scheduler), tape_of(steps)
    denoiser = EpsilonDenoiser(net, schedule, clip=0.9)
    chain = ddim_chain(schedule, steps, eta, set_alpha_to_one)
    x = tape.start
    for k, t in enumerate(scheduler.timesteps):
        output = net(x, t.expand(B), None)
        noise = tape.xi[:, k]
        x = scheduler.step(output, t, x, eta=eta, use_clipped_model_output=clipped, variance_noise=noise).prev_sample
    ours = denoiser if clipped else unclipped_ddim(denoiser, schedule, steps, eta, set_alpha_to_one)
    torch.testing.assert_close(on_one_tape(ours, chain, tape), x, **CLOSE)
    plain = sample_ddim(denoiser, schedule, SHAPE, B, None, tape, steps, eta, None, clipped, set_alpha_to_one)
    torch.testing.assert_close(on_one_tape(ours, chain, tape), plain, **CLOSE)


def test_clipping_matters_to_that_comparison():
    schedule, tape = Schedule.from_diffusers({"num_train_timesteps": 100}), tape_of(20)
    denoiser, chain = EpsilonDenoiser(net, schedule, clip=0.9), ddim_chain(schedule, 20)
    other = unclipped_ddim(denoiser, schedule, 20)
    assert float((on_one_tape(denoiser, chain, tape) - on_one_tape(other, chain, tape)).abs().max()) > 0.01
    free = EpsilonDenoiser(net, schedule, clip=None)
    assert unclipped_ddim(free, schedule, 20) is free


def test_ddim_without_noise_or_clip_to_lift_is_refused():
    schedule = Schedule.from_diffusers({"num_train_timesteps": 100})
    for make in (lambda: ddim_chain(schedule, 10, 0), lambda: unclipped_ddim(net, schedule, 10, 0.0)):
        with pytest.raises(ConfigError, match=r"eta is 0.*no draft of a step can be accepted.*sampler 'ddim'"):
            make()
    for eta in (-1, "1", None, float("nan"), True):
        with pytest.raises(ConfigError, match="eta is"):
            ddim_chain(schedule, 10, eta)

    class Bounded:
        clip = 1.0

        def __call__(self, x, t, cond):
            return x.clamp(-1, 1)

    with pytest.raises(ConfigError, match="before they are clipped, which a Bounded does not tell"):
        unclipped_ddim(Bounded(), schedule, 10)


@pytest.mark.parametrize("steps", [1, 20, 50])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction", SIGMA_DENOISERS)
def test_euler_ancestral_is_diffusers(steps, spacing, prediction, monkeypatch):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(steps)
    tape = tape_of(steps)
    x = tape.start * scheduler.init_noise_sigma
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    for k, t in enumerate(scheduler.timesteps):
        monkeypatch.setattr(module, lambda *shape, k=k, **options: tape.xi[:, k])
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t.expand(B), None), t, x).prev_sample
    denoiser = SIGMA_DENOISERS[prediction](net, Schedule.from_diffusers(scheduler))
    torch.testing.assert_close(on_one_tape(denoiser, euler_ancestral_chain(scheduler), tape), x, **CLOSE)


@pytest.mark.parametrize("eta", [0.4, 1.0, 3.0])
def test_ancestral_sampling_is_k_diffusions(eta):
    """sample_euler_ancestral and get_ancestral_step, written out."""
    sigmas = [10.0, 4.0, 1.5, 0.4, 0.1, 0.0]
    tape = tape_of(5)

    def denoised(x, sigma, cond=None):
        return x / (1 + sigma.view(-1, 1) ** 2) + 0.1 * torch.sin(x)

    x = sigmas[0] * tape.start
    for k, (now, then) in enumerate(pairwise(sigmas)):
        up = min(then, eta * (then**2 * (now**2 - then**2) / now**2) ** 0.5)
        down = (then**2 - up**2) ** 0.5
        d = (x - denoised(x, torch.full((B,), now))) / now
        x = x + d * (down - now)
        if then > 0:
            x = x + tape.xi[:, k] * up
    torch.testing.assert_close(on_one_tape(denoised, ancestral_chain(sigmas, eta), tape), x, **CLOSE)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DDIMScheduler"])
def test_schedulers_with_other_steps_are_refused(name):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(5)
    with pytest.raises(ConfigError, match=f"is a {name}; expected diffusers' EulerAncestralDiscreteScheduler"):
        euler_ancestral_chain(scheduler)


@pytest.mark.parametrize(
    "sigmas", [[1.0], [], [1.0, 2.0], [1.0, 1.0], [1.0, -0.1], [float("inf"), 1.0], "ab", None, 3.0]
)
def test_levels_that_do_not_fall_are_refused(sigmas):
    with pytest.raises(ConfigError, match="sigmas is"):
        ancestral_chain(sigmas)


@pytest.mark.parametrize("eta", [0, -1, "1", float("nan"), None])
def test_ancestral_sampling_without_noise_is_refused(eta):
    with pytest.raises(ConfigError, match=r"eta is .*expected a positive number"):
        ancestral_chain([1.0, 0.5, 0.0], eta)


def test_few_rounds_of_an_euler_ancestral_chain():
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(50)
    denoiser = SIGMA_DENOISERS["epsilon"](net, Schedule.from_diffusers(scheduler))
    sampler = AsdSampler(denoiser, euler_ancestral_chain(scheduler), SHAPE, window=None)
    assert float(sampler(32, None, torch.Generator().manual_seed(0))[1].rounds.float().mean()) < 25
