"""Each family of chains equals its reference step for step, on one noise tape."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from asd_policy.core import (
    SIGMA_DENOISERS,
    AsdSampler,
    EdmDenoiser,
    EpsilonDenoiser,
    FlowPath,
    GaussianChain,
    NoiseTape,
    Schedule,
    ScoreDenoiser,
    VelocityDenoiser,
    VePath,
    VpPath,
    ancestral_chain,
    ddim_chain,
    edm_chain,
    edm_sigmas,
    euler_ancestral_chain,
    sample_chain,
    sample_ddim,
    sde_chain,
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


def test_edm_is_algorithm_2_with_euler_steps():
    """Karras et al. 2022, Algorithm 2, without its second-order correction, written out."""
    steps, s_churn, s_tmin, s_tmax, s_noise = 12, 6.0, 0.1, 10.0, 1.1
    tape = tape_of(steps)
    i = torch.arange(steps, dtype=torch.float64)
    sigmas = torch.cat([(40 ** (1 / 7) + i / (steps - 1) * (0.02 ** (1 / 7) - 40 ** (1 / 7))) ** 7, torch.zeros(1)])
    torch.testing.assert_close(edm_sigmas(steps, 0.02, 40.0), sigmas.double(), rtol=1e-12, atol=0)
    chain = edm_chain(sigmas, s_churn, s_tmin, s_tmax, s_noise)

    def churned(x, k, noise):
        gamma = min(s_churn / steps, 2**0.5 - 1) if s_tmin <= sigmas[k] <= s_tmax else 0.0
        hat = sigmas[k] + gamma * sigmas[k]
        return x + (hat**2 - sigmas[k] ** 2).sqrt().float() * s_noise * noise, hat.float()

    def denoised(x, sigma, cond=None):
        return x / (1 + sigma.view(-1, 1) ** 2) + 0.1 * torch.sin(x)

    x, hat = chain.start_std * tape.start, sigmas[0].float()  # sigma_max is above s_tmax: no churn there
    assert chain.start_std == pytest.approx(40)
    for k in range(steps):
        d = (x - denoised(x, hat.expand(B))) / hat
        x = x + (sigmas[k + 1].float() - hat) * d
        if k + 1 < steps:
            x, hat = churned(x, k + 1, tape.xi[:, k])
    torch.testing.assert_close(on_one_tape(denoised, chain, tape), x, **CLOSE)
    assert 0 < int((chain.s == 0).sum()) < steps


def test_the_churn_of_the_first_level_is_in_the_start():
    chain = edm_chain([3.0, 1.0, 0.0], s_churn=100, s_tmin=0, s_tmax=float("inf"), s_noise=1.5)
    hat = 3 * 2**0.5
    assert chain.start_std == pytest.approx((9 + 1.5**2 * (hat**2 - 9)) ** 0.5)
    assert float(chain.timesteps[0]) == pytest.approx(hat)


def test_vp_is_the_published_euler_maruyama():
    """Song et al. 2021: dx = [-beta x / 2 - beta score] dt + sqrt(beta) dW, backwards; the last step is its mean."""
    beta_min, beta_max, steps = 0.1, 20.0, 25
    tape, path = tape_of(steps), VpPath(beta_min, beta_max)
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).float()

    def score(x, t, cond=None):
        return -x / (1 + 0.2 * torch.cos(t).view(-1, 1))

    x = tape.start
    for k, (now, then) in enumerate(pairwise(times)):
        beta, dt = beta_min + now * (beta_max - beta_min), now - then
        mean = x - dt * (-beta * x / 2 - beta * score(x, now.expand(B)))
        x = mean + (beta * dt).sqrt() * tape.xi[:, k]
    torch.testing.assert_close(on_one_tape(ScoreDenoiser(score, path), sde_chain(path, times), tape), mean, **CLOSE)


def test_ve_is_the_published_euler_maruyama():
    """Song et al. 2021: dx = -g^2 score dt + g dW backwards, with g = sigma sqrt(2 log(sigma_max / sigma_min))."""
    sigma_min, sigma_max, steps = 0.01, 50.0, 40
    tape, path = tape_of(steps), VePath(sigma_min, sigma_max)
    times = torch.linspace(1, 1e-5, steps + 1, dtype=torch.float64)

    def score(x, t, cond=None):
        sigma = sigma_min * (sigma_max / sigma_min) ** t.view(-1, 1)
        return -(x - 0.3 * torch.tanh(x)) / (0.25 + sigma**2)

    x = sigma_max * tape.start
    for k, (now, then) in enumerate(pairwise(times.float())):
        sigma, dt = sigma_min * (sigma_max / sigma_min) ** now, now - then
        g = sigma * (2 * math.log(sigma_max / sigma_min)) ** 0.5
        mean = x + g**2 * score(x, now.expand(B)) * dt
        x = mean + g * dt.sqrt() * tape.xi[:, k]
    ours = on_one_tape(ScoreDenoiser(score, path), sde_chain(path, times), tape)
    torch.testing.assert_close(ours, mean, **CLOSE)


def test_flow_is_the_published_sde():
    """SiT, eq. 4 and 9: dx = v dt - w/2 score dt + sqrt(w) dW, backwards, w = noise t; the last step is Euler's."""
    steps, noise = 20, 0.7
    tape, path = tape_of(steps), FlowPath(noise)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def velocity(x, t, cond=None):
        return 0.8 * x - torch.sin(x) * t.view(-1, 1) + 0.1

    x = tape.start
    for k, (now, then) in enumerate(pairwise(times.float())):
        v, dt = velocity(x, now.expand(B)), now - then
        score = -((1 - now) * v + x) / now  # sigma^-1 (alpha v - alpha' x) / (alpha' sigma - alpha sigma')
        w = noise * now if k + 1 < steps else torch.tensor(0.0)
        x = x - v * dt + w / 2 * score * dt + (w * dt).sqrt() * tape.xi[:, k]
    torch.testing.assert_close(on_one_tape(VelocityDenoiser(velocity, path), sde_chain(path, times), tape), x, **CLOSE)


def test_edm_preconditioning_is_table_1():
    def inner(x, t, cond):
        return torch.sin(x) + t.view(-1, 1)

    x, sigma, data = torch.randn(3, 5), torch.tensor([0.01, 1.0, 80.0]), 0.4
    s = sigma.view(-1, 1)
    root = (s**2 + data**2).sqrt()
    expected = data**2 / root**2 * x + s * data / root * inner(x / root, sigma.log() / 4, None)
    torch.testing.assert_close(EdmDenoiser(inner, data)(x, sigma), expected)
    torch.testing.assert_close(EdmDenoiser(inner, data, clip=0.1)(x, sigma), expected.clamp(-0.1, 0.1))


@pytest.mark.parametrize("path", [VpPath(), VePath(), FlowPath()], ids=lambda path: type(path).__name__)
def test_scores_and_velocities_of_a_known_sample_give_it_back(path):
    t = torch.tensor([0.02, 0.5, 0.9], dtype=torch.float64)
    clean, eps = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma, alpha_rate, sigma_rate = (level.view(-1, 1) for level in path.levels(t))
    x = alpha * clean + sigma * eps
    torch.testing.assert_close(ScoreDenoiser(lambda x, t, cond: -eps / sigma, path)(x, t), clean)
    rate = alpha_rate * clean + sigma_rate * eps
    torch.testing.assert_close(VelocityDenoiser(lambda x, t, cond: rate, path)(x, t), clean)
    above, below = (torch.stack(path.levels(t + h)[:2]) for h in (1e-6, -1e-6))
    torch.testing.assert_close(torch.stack(path.levels(t)[2:]), (above - below) / 2e-6, rtol=1e-6, atol=1e-6)


def test_times_without_a_clean_sample_are_refused():
    chain = sde_chain(FlowPath(), torch.linspace(1, 0, 5))
    with pytest.raises(ConfigError, match=r"At the times \[1.0\] the output of a ScoreDenoiser"):
        AsdSampler(ScoreDenoiser(net, FlowPath()), chain, SHAPE)  # at t = 1 the state holds nothing of the sample
    AsdSampler(VelocityDenoiser(net, FlowPath()), chain, SHAPE)
    with pytest.raises(ConfigError, match="determines no clean sample"):
        AsdSampler(EdmDenoiser(net), GaussianChain([1.0], [1.0], [0.0], [-1.0]), SHAPE)


def test_timesteps_of_noise_levels():
    denoiser = SIGMA_DENOISERS["epsilon"](net, Schedule.from_diffusers({"num_train_timesteps": 100}))
    times = torch.tensor([99.0, 50.25, 3.5, 0.0])
    torch.testing.assert_close(denoiser.timesteps(denoiser.sigma(times)).float(), times, rtol=1e-4, atol=1e-4)
    for wrong in (0.0, 1e3, float("nan")):
        with pytest.raises(ConfigError, match="noise levels are"):
            denoiser.timesteps(torch.tensor([wrong]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edm_sigmas(0), "num_steps is 0"),
        (lambda: edm_sigmas(5, 2.0, 1.0), "sigma_min is 2.0 and sigma_max 1.0"),
        (lambda: edm_sigmas(5, rho=0), "rho is 0"),
        (lambda: edm_chain([1.0, 0.0], s_churn=0), "s_churn is 0"),
        (lambda: edm_chain([1.0, 0.0], s_noise=-1), "s_noise is -1"),
        (lambda: edm_chain([1.0, 0.0], s_tmin="0"), "s_tmin is '0'"),
        (lambda: edm_chain([0.0, 1.0]), "sigmas is"),
        (lambda: sde_chain(VpPath(), [0.0, 1.0]), "times is"),
        (lambda: sde_chain(VpPath(), [2.0, 1.0]), r"times begin at 2\.0"),
        (lambda: sde_chain(object(), [1.0, 0.0]), "lacks diffusion, levels, start_std of the protocol GaussianPath"),
        (lambda: VpPath(3.0, 2.0), "beta_min is 3.0 and beta_max is 2.0"),
        (lambda: VePath(0.0, 2.0), "sigma_min is 0.0"),
        (lambda: FlowPath(0), "noise is 0"),
        (lambda: EdmDenoiser(net, sigma_data=0), "sigma_data is 0"),
        (lambda: ScoreDenoiser(net, None), "protocol GaussianPath"),
        (lambda: VelocityDenoiser(net, VpPath), "is the class VpPath"),
    ],
)
def test_what_makes_no_chain_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
