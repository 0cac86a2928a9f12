"""Euler ancestral and DDIM with noise are kept: diffusers' own images without speculation, and their law with it."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
)
from torch import Tensor

from asd_policy.core import speculative
from asd_policy.errors import ConfigError
from asd_policy.images import AsdImagePipeline, accelerate_pipeline, ddpm_scheduler
from tests.core import laws
from tests.images.test_law import always_accepting
from tests.images.tiny_models import (
    EVENT,
    LATENT,
    SCHEDULE,
    pixel_pipeline,
    stable_diffusion,
    stable_diffusion_xl,
)

WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}
EULER = (EulerAncestralDiscreteScheduler, {}, 0.0)
DDIM = (DDIMScheduler, {"clip_sample": False}, 1.0)
KEPT = {"euler ancestral": EULER, "ddim, eta 1": DDIM, "ddim, eta 0.3": (DDIMScheduler, {"clip_sample": False}, 0.3)}
"""Name -> class, settings for latents and the eta of the call."""
SPACINGS = ["leading", "linspace", "trailing"]


@pytest.fixture(scope="module", params=[stable_diffusion, stable_diffusion_xl], ids=["sd", "sdxl"])
def pipe(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("pipe"))


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def latents(f, num_steps: int | None = 7, **arguments) -> Tensor:
    arguments = {"negative_prompt": "z", "guidance_scale": 3.0, "output_type": "latent", **arguments}
    return f("a b", generator=generators(1), num_inference_steps=num_steps, **arguments).images


def assert_diffusers(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps_offset", [0, 1])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_without_speculation_it_draws_what_diffusers_draws(pipe, kept, spacing, steps_offset, prediction_type):
    kind, settings, eta = KEPT[kept]
    chain = {"timestep_spacing": spacing, "steps_offset": steps_offset, "prediction_type": prediction_type}
    pipe.scheduler = kind(**SCHEDULE, **settings, **chain)
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    for num_steps in (1, 7):
        assert_diffusers(*(latents(f, num_steps, eta=eta) for f in (fast, pipe)))
        assert fast.stats.rounds.tolist() == [2 * num_steps]


CHANGES = [
    (EULER, {"beta_schedule": "squaredcos_cap_v2"}),
    (EULER, {"trained_betas": [0.01 * (step + 1) for step in range(20)]}),
    (DDIM, {"prediction_type": "sample"}),
    (DDIM, {"clip_sample": True, "clip_sample_range": 0.7}),
    (DDIM, {"set_alpha_to_one": False, "beta_schedule": "scaled_linear"}),
    (
        DDIM,
        {"set_alpha_to_one": False, "clip_sample": True, "timestep_spacing": "linspace", "prediction_type": "sample"},
    ),
]


@pytest.mark.parametrize(("kept", "change"), CHANGES, ids=str)
def test_settings_are_followed(pipe, kept, change):
    kind, settings, eta = kept
    pipe.scheduler = kind(**{**SCHEDULE, **settings, **change})
    assert_diffusers(*(latents(f, eta=eta) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe)))


@pytest.mark.parametrize("kept", [EULER, DDIM], ids=["euler", "ddim"])
def test_arguments_are_followed(pipe, kept):
    kind, settings, eta = kept
    pipe.scheduler = kind(**SCHEDULE, **settings)
    start = torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(3))
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    for arguments in ({"latents": start}, {"guidance_scale": 1.0}, {"guidance_rescale": 0.7}, {"output_type": "pt"}):
        assert_diffusers(*(latents(f, eta=eta, **arguments) for f in (fast, pipe)))
    arguments = {"num_images_per_prompt": 3, "num_inference_steps": 5, "output_type": "latent", "eta": eta}
    for generator in (lambda: generators(3), lambda: generators(1)[0]):
        assert_diffusers(*(f("a", generator=generator(), **arguments).images for f in (fast, pipe)))


@pytest.mark.parametrize("kept", [EULER, DDIM], ids=["euler", "ddim"])
def test_the_pipelines_scheduler_is_not_changed(pipe, kept):
    kind, settings, eta = kept
    pipe.scheduler = kind(**SCHEDULE, **settings)
    before = dict(vars(pipe.scheduler))
    told = []
    fast = accelerate_pipeline(pipe, window=4)

    def watch(given, step, timestep, tensors):
        told.append((step, timestep))

    latents(fast, 20, eta=eta, callback_on_step_end=watch)
    assert all(vars(pipe.scheduler)[name] is value for name, value in before.items())
    pipe.scheduler.set_timesteps(20)
    assert told == [(step, float(pipe.scheduler.timesteps[step])) for step, _ in told]
    assert told[-1][0] == 19
    assert fast.stats.rounds.max() < 20


def test_fifty_steps_if_none_are_named(pipe):
    pipe.scheduler = EulerAncestralDiscreteScheduler(**{**SCHEDULE, "num_train_timesteps": 100, "beta_end": 0.1})
    fast = accelerate_pipeline(pipe)
    assert_diffusers(latents(fast, None), latents(fast, 50))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    assert_diffusers(latents(fast, None, eta=1.0), latents(fast, 50, eta=1.0))


# Pixels. diffusers' DDPMPipeline neither scales the start nor the network's input, as Euler ancestral needs.
def euler_images(pipe, num_steps: int, n: int) -> Tensor:
    scheduler, drawn = pipe.scheduler, []
    for generator in generators(n):
        scheduler.set_timesteps(num_steps)
        x = torch.randn(1, *EVENT, generator=generator) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            with torch.no_grad():
                output = pipe.unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(output, t, x, generator=generator).prev_sample
        drawn.append(x)
    return torch.cat(drawn)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "sampler", [{"sampler": "ddpm"}, {"sampler": "asd", **WITHOUT_SPECULATION}], ids=["plain", "asd"]
)
def test_euler_ancestral_of_pixels(spacing, sampler):
    pipe = pixel_pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing=spacing)
    got = AsdImagePipeline(pipe, **sampler)(
        3, generator=generators(3), num_inference_steps=7, output_type="latent"
    ).images
    assert_diffusers(got, euler_images(pipe, 7, 3))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize(
    "sampler", [{"sampler": "ddpm"}, {"sampler": "asd", **WITHOUT_SPECULATION}], ids=["plain", "asd"]
)
def test_ddim_of_pixels(spacing, clip_sample, sampler):
    """With clip_sample the noise direction still comes from the prediction before it is clipped."""
    pipe = pixel_pipeline()
    pipe.scheduler = DDIMScheduler(**SCHEDULE, timestep_spacing=spacing, clip_sample=clip_sample)
    theirs = DDIMPipeline(pipe.unet, pipe.scheduler)
    theirs.set_progress_bar_config(disable=True)
    for eta, num_steps in ((1.0, 7), (0.3, 10), (0.5, 1)):
        arguments = {"num_inference_steps": num_steps, "output_type": "np", "eta": eta}
        got = AsdImagePipeline(pipe, **sampler)(3, generator=generators(3), **arguments).images
        np.testing.assert_allclose(got, theirs(3, generators(3), **arguments).images, rtol=0, atol=2e-5)


def test_sampler_ddim_takes_its_own_eta():
    pipe = pixel_pipeline()
    pipe.scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE)
    euler = AsdImagePipeline(pipe, "ddim", num_steps=5, eta=0.5)(generator=generators(1), output_type="pt").images
    pipe.scheduler = ddpm_scheduler(pipe.scheduler)
    ddpm = AsdImagePipeline(pipe, "ddim", num_steps=5, eta=0.5)(generator=generators(1), output_type="pt").images
    assert torch.equal(euler, ddpm)


class NoisierSteps(EulerAncestralDiscreteScheduler):
    """Not the chain of its configuration."""

    def step(self, *arguments, **options):
        return super().step(*arguments, **options)


class NoisierDdim(DDIMScheduler):
    """Not the chain of its configuration."""

    def _get_variance(self, *arguments):
        return 2 * super()._get_variance(*arguments)


def patched() -> EulerAncestralDiscreteScheduler:
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE)
    scheduler.step = lambda *arguments, **options: None
    return scheduler


def with_other_noise_levels() -> EulerAncestralDiscreteScheduler:
    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE)
    scheduler.alphas_cumprod.mul_(0.5)
    return scheduler


def euler(**settings) -> EulerAncestralDiscreteScheduler:
    return EulerAncestralDiscreteScheduler(**SCHEDULE, **settings)


def ddim(**settings) -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE, **settings)


@pytest.mark.parametrize(
    ("scheduler", "arguments", "message"),
    [
        (euler(prediction_type="sample"), {}, "prediction_type of an EulerAncestralDiscreteScheduler 'sample'"),
        (euler(rescale_betas_zero_snr=True), {}, "rescale_betas_zero_snr"),
        (euler(timestep_spacing="other"), {}, "other"),
        (NoisierSteps(**SCHEDULE), {}, "NoisierSteps has its own step"),
        (patched(), {}, "has its own step"),
        (with_other_noise_levels(), {}, "alphas_cumprod"),
        (euler(), {"timesteps": [9, 3]}, "timesteps is given, and the pipeline's scheduler takes none"),
        (euler(), {"sigmas": [1.0, 0.5]}, "sigmas is not supported"),
        (euler(), {"num_inference_steps": 0}, "num_inference_steps is 0"),
        (euler(timestep_spacing="leading", steps_offset=1), {"num_inference_steps": 20}, "timesteps 1 to 20 of 20"),
        (euler(timestep_spacing="leading"), {"num_inference_steps": 21}, "sigmas"),
        (
            EulerAncestralDiscreteScheduler(num_train_timesteps=30, timestep_spacing="trailing"),
            {"num_inference_steps": 13},  # diffusers rounds these to 14 timesteps
            "-1 to 29",
        ),
        (ddim(rescale_betas_zero_snr=True), {"eta": 1.0}, "rescale_betas_zero_snr"),
        (ddim(thresholding=True), {"eta": 1.0}, "thresholding"),
        (ddim(), {"eta": 1.1}, "eta is 1.1"),
        (ddim(), {"eta": -0.1}, "eta is -0.1"),
        (ddim(), {"eta": "1"}, "eta is '1'"),
        (ddim(), {"eta": float("nan")}, "eta is nan"),
        (ddim(), {"eta": 1.0, "timesteps": [9, 3]}, "timesteps is given"),
        (ddim(), {"eta": 1.0, "num_inference_steps": 21}, "1 to 20"),
        (ddim(steps_offset=1), {"eta": 1.0, "num_inference_steps": 20}, "steps_offset 1"),
        (NoisierDdim(**SCHEDULE), {"eta": 1.0}, "NoisierDdim has its own _get_variance"),
        (DDIMParallelScheduler(**SCHEDULE), {"eta": 1.0}, "the chain of a DDIMParallelScheduler is not sampled"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_by_name(pipe, scheduler, arguments, message):
    pipe.scheduler, state = DDPMScheduler(**SCHEDULE), torch.get_rng_state()
    fast = accelerate_pipeline(pipe)
    pipe.scheduler = scheduler
    with pytest.raises(ConfigError, match=message):
        fast("a", **{"num_inference_steps": 7, **arguments})
    assert torch.equal(torch.get_rng_state(), state)
    if not arguments:
        with pytest.raises(ConfigError, match=message):
            accelerate_pipeline(pipe)


def test_an_eta_that_pixels_have_no_use_for_is_refused():
    pipe = pixel_pipeline()
    for sampler, message in (("asd", "the pipeline's scheduler is a DDPMScheduler"), ("ddim", "option of the sampler")):
        with pytest.raises(ConfigError, match=message):
            AsdImagePipeline(pipe, sampler)(num_inference_steps=5, eta=0.5)


def test_ddim_without_noise_is_a_ddpm_and_says_so(pipe):
    pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    fast = accelerate_pipeline(pipe)
    with pytest.warns(UserWarning, match="DDPM with its betas is sampled in its place") as told:
        got = latents(fast)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents(fast, eta=0.5)
        pipe.scheduler = ddpm_scheduler(pipe.scheduler)
        assert torch.equal(latents(fast), got)
    pixels = pixel_pipeline()
    pixels.scheduler = DDIMScheduler(**SCHEDULE)
    with pytest.warns(UserWarning, match="DDPM with its betas"):
        accelerate_pipeline(pixels)()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AsdImagePipeline(pixels, "ddim", num_steps=5)()


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


def many(pipe, kept, seed: int, n: int = 1000, **options):
    kind, settings, eta = kept
    pipe.scheduler = kind(**SCHEDULE, **settings)
    fast = accelerate_pipeline(pipe, **options)
    arguments = {"num_images_per_prompt": n, "num_inference_steps": 10, "output_type": "latent", "guidance_scale": 4.0}
    generator = torch.Generator().manual_seed(seed)
    return fast("a b", negative_prompt="z", generator=generator, eta=eta, **arguments).images, fast.stats


LAWS = {"euler": EULER, "ddim": KEPT["ddim, eta 0.3"]}


@pytest.fixture(scope="module")
def expected(sd):
    """The schedulers' own: diffusers' latents, as above."""
    return {name: many(sd, kept, 1, **WITHOUT_SPECULATION)[0] for name, kept in LAWS.items()}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize(("draft", "window"), [("frozen", 4), ("reuse", 8), ("path", None)])
def test_law(sd, name, expected, draft, window):
    x, stats = many(sd, LAWS[name], 2, draft=draft, window=window)
    expected = expected[name]
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    assert stats.acceptance[:-1].min() < 0.9  # the drafts are wrong often enough to matter


def test_control_another_chain(sd, expected):
    """The law is the scheduler's own, not that of the DDPM with its betas. (DDIM with eta 1 is nearly that DDPM.)"""
    x, _ = many(sd, (DDPMScheduler, {"clip_sample": False}, 0.0), 2, draft="path", window=8)
    assert all(laws.largest_z(x, other) > 6 for other in expected.values())
    assert laws.smallest_p(expected["euler"], expected["ddim"]) < laws.REJECT


@pytest.mark.parametrize("name", LAWS)
def test_control_broken_verifier(sd, name, expected, monkeypatch):
    monkeypatch.setattr(speculative, "gaussian_rejection", always_accepting)
    x, _ = many(sd, LAWS[name], 2, draft="reuse", window=None)
    assert laws.smallest_p(x, expected[name]) < laws.REJECT


def test_graphs_are_kept_for_one_chain_alone():
    pipe = pixel_pipeline()
    pipe.scheduler = DDIMScheduler(**SCHEDULE)
    pipeline = accelerate_pipeline(pipe, capture="cuda_graph")
    first = pipeline._sampler(7, 1.0, 1.0)
    assert pipeline._sampler(7, 1.0, 1.0) is first
    assert pipeline._sampler(7, 1.0, 0.5) is not first
    assert pipeline._sampler(7, 1.0) is not first
    pipe.scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=False)
    assert pipeline._sampler(7, 1.0, 1.0) is not first


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_compiled(sd, name):
    kind, settings, eta = LAWS[name]
    sd.scheduler = kind(**SCHEDULE, **settings)
    captured, eager = (accelerate_pipeline(sd, draft="reuse", window=8, capture=c) for c in ("compile", "eager"))
    arguments = {"num_images_per_prompt": 4, "num_inference_steps": 7, "output_type": "latent", "eta": eta}
    got, expected = (f("a", generator=generators(4), **arguments).images for f in (captured, eager))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert torch.equal(captured.stats.rounds, eager.stats.rounds)


@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.5},
        {"eta": 0.5, "num_steps": 5},
        {"use_clipped_model_output": False},
        {"set_alpha_to_one": False},
    ],
    ids=str,
)
def test_a_law_in_the_options_of_asd_is_refused(options):
    for scheduler in (DDPMScheduler, DDIMScheduler, EulerAncestralDiscreteScheduler):
        pipe = pixel_pipeline()
        pipe.scheduler = scheduler(**SCHEDULE)
        with pytest.raises(ConfigError, match=f"got {next(iter(options))}=.*a pipeline's law is that of its scheduler"):
            AsdImagePipeline(pipe, "asd", **options)


def test_steps_of_a_call_that_ddim_would_ignore_are_refused():
    with pytest.raises(ConfigError, match=r"num_inference_steps is 7; with sampler 'ddim'.*num_steps"):
        AsdImagePipeline(pixel_pipeline(), "ddim", num_steps=5)(num_inference_steps=7)
