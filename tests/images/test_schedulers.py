"""Schedulers that are not kept stand for a DDPM: the images are those of diffusers' DDPMScheduler of their betas."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from asd_policy.errors import ConfigError
from asd_policy.images import AsdImagePipeline, accelerate_pipeline, ddpm_scheduler
from tests.images.tiny_models import SCHEDULE, pixel_pipeline, pixel_unet, quiet, stable_diffusion

WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}
REFUSED = {"EDMEulerScheduler", "DPMSolverSDEScheduler"}  # no betas; needs torchsde
KEPT = {"EulerAncestralDiscreteScheduler"}  # see test_kept_schedulers.py
COMPATIBLE = sorted(
    (c for c in DDPMScheduler().compatibles if c.__name__ not in REFUSED | KEPT), key=lambda c: c.__name__
)


@pytest.fixture
def pipe(tmp_path):
    return stable_diffusion(tmp_path)


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def latents(pipe, num_steps: int | None = 7, **arguments) -> torch.Tensor:
    arguments = {"negative_prompt": "z", "guidance_scale": 3.0, "output_type": "latent", **arguments}
    return pipe("a b", generator=generators(1), num_inference_steps=num_steps, **arguments).images


def assert_diffusers(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def made_new(kind, folder):
    return kind(**SCHEDULE)


def saved_and_loaded(kind, folder):
    kind(**SCHEDULE).save_pretrained(folder / "scheduler")
    return kind.from_pretrained(folder / "scheduler")


def from_the_pipelines(kind, folder):
    return kind.from_config(
        DDPMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1, prediction_type="sample").config
    )


@pytest.mark.parametrize("kind", COMPATIBLE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("make", [made_new, saved_and_loaded, from_the_pipelines])
def test_a_swapped_scheduler_stands_for_its_ddpm(pipe, tmp_path, kind, make):
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    pipe.scheduler = make(kind, tmp_path)
    config = pipe.scheduler.config
    got = latents(fast)
    # Latents are unbounded: schedulers that never clip do not become one that does.
    pipe.scheduler = DDPMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    assert_diffusers(got, latents(pipe))


@pytest.mark.parametrize("kind", COMPATIBLE, ids=lambda kind: kind.__name__)
def test_a_swapped_scheduler_of_a_ddpm_pipeline(tmp_path, kind):
    pipe = pixel_pipeline()
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    pipe.scheduler = saved_and_loaded(kind, tmp_path)
    got = fast(2, generator=generators(2), num_inference_steps=7, output_type="np").images
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    np.testing.assert_allclose(got, pipe(2, generators(2), 7, output_type="np").images, rtol=0, atol=2e-4)


CHANGES = [
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"beta_end": 0.1},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear"},
    {"trained_betas": [0.01 * (step + 1) for step in range(20)]},
    {"clip_sample": True, "clip_sample_range": 0.7},
    {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.8},
    {"steps_offset": 0},
    {"variance_type": None},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_setting_is_followed(pipe, change):
    fast, pixels = accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pixel_pipeline()
    fast_pixels = accelerate_pipeline(pixels, **WITHOUT_SPECULATION)
    before = latents(fast)
    for changed in (pipe, pixels):
        changed.scheduler = DDPMScheduler.from_config(changed.scheduler.config, **change)
    got = latents(fast)
    assert_diffusers(got, latents(pipe))
    assert torch.equal(got, before) == (change == {"variance_type": None})
    assert fast.scheduler.config.prediction_type == pipe.scheduler.config.prediction_type
    arguments = {"num_inference_steps": 7, "output_type": "np"}
    expected = pixels(2, generators(2), **arguments).images
    np.testing.assert_allclose(fast_pixels(2, generator=generators(2), **arguments).images, expected, atol=2e-4)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", None])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps_offset", [0, 1])
@pytest.mark.parametrize("num_steps", [1, 3, 7, 10, 19])
def test_strides(variance_type, spacing, steps_offset, num_steps):
    settings = {"variance_type": variance_type, "timestep_spacing": spacing, "steps_offset": steps_offset}
    pipe = pixel_pipeline(prediction_type="sample", clip_sample=False, **settings)
    arguments = {"num_inference_steps": num_steps, "output_type": "np"}
    expected = pipe(2, generators(2), **arguments).images
    for sampler in ({"sampler": "ddpm"}, {"sampler": "asd", **WITHOUT_SPECULATION}):
        got = AsdImagePipeline(pipe, **sampler)(2, generator=generators(2), **arguments).images
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("timesteps", [[19, 18, 17], [12, 5], [7], [9, 0]])
def test_timesteps_of_ones_own(pipe, variance_type, timesteps):
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, variance_type=variance_type)
    got, expected = (latents(f, timesteps=timesteps) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe))
    assert_diffusers(got, expected)


def test_a_pipeline_made_with_a_scheduler_of_defaults(pipe):
    """The constructor changes clip_sample and steps_offset behind the scheduler's back."""
    made = quiet(StableDiffusionPipeline(**{**pipe.components, "scheduler": DDPMScheduler(**SCHEDULE)}))
    assert (made.scheduler.config.clip_sample, made.scheduler.config.steps_offset) == (False, 1)
    assert_diffusers(latents(accelerate_pipeline(made, **WITHOUT_SPECULATION)), latents(made))


class NoisierSteps(DDPMScheduler):
    """Not the DDPM of its configuration."""

    def _get_variance(self, *arguments, **options):
        return 2 * super()._get_variance(*arguments, **options)


def with_other_noise_levels() -> DDPMScheduler:
    scheduler = DDPMScheduler(**SCHEDULE)
    scheduler.alphas_cumprod[-1] = 0
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler has no DDPM"),
        (EDMEulerScheduler(), "EDMEulerScheduler has no DDPM"),
        (LCMScheduler(**SCHEDULE), "LCMScheduler has no DDPM"),
        (UniPCMultistepScheduler(**SCHEDULE, use_flow_sigmas=True, prediction_type="flow_prediction"), "flows"),
        (EulerDiscreteScheduler(**SCHEDULE, timestep_type="continuous"), "continuous"),
        (HeunDiscreteScheduler(**{**SCHEDULE, "beta_schedule": "exp"}), "exp"),
        (DDPMScheduler(**SCHEDULE, beta_schedule="sigmoid"), "sigmoid"),
        (DDPMScheduler(**SCHEDULE, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
        (DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
        (DDPMScheduler(**SCHEDULE, variance_type="learned_range"), "learned_range"),
        (DDPMScheduler(**SCHEDULE, prediction_type="flow"), "prediction_type 'flow'"),
        (DDPMScheduler(**SCHEDULE, timestep_spacing="other"), "timestep spacing 'other'"),
        (DDPMScheduler(**SCHEDULE, steps_offset=-1), "steps_offset is -1"),
        (DDPMScheduler(**SCHEDULE, steps_offset="1"), "steps_offset is '1'"),
        (DDPMScheduler(**SCHEDULE, clip_sample=True, clip_sample_range=None), "clip_sample_range is None"),
        (DDPMScheduler(**SCHEDULE, clip_sample=True, clip_sample_range=float("nan")), "clip_sample_range is nan"),
        (DDPMScheduler(**SCHEDULE, clip_sample=True, clip_sample_range=-1.0), "clip_sample_range is -1.0"),
        (DDPMScheduler(**SCHEDULE, thresholding=True, dynamic_thresholding_ratio=2.0), "0 to 1"),
        (DDPMScheduler(**SCHEDULE, thresholding=True, sample_max_value=float("inf")), "sample_max_value is inf"),
        (DDPMScheduler(trained_betas=[0.1, float("nan")]), r"values in \(0, 1\)"),
        (NoisierSteps(**SCHEDULE), "its own _get_variance"),
        (with_other_noise_levels(), "alphas_cumprod"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_at_construction_and_at_the_next_call(pipe, scheduler, message):
    fast, pixels = accelerate_pipeline(pipe), accelerate_pipeline(pixel_pipeline())
    pipe.scheduler = pixels.pipe.scheduler = scheduler
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    for refused in (
        lambda: accelerate_pipeline(pipe),
        lambda: accelerate_pipeline(DDPMPipeline(pixel_unet(), scheduler)),
        lambda: fast("a", generator=generator),
        lambda: pixels(generator=generator),
    ):
        with pytest.raises(ConfigError, match=message):
            refused()
    assert torch.equal(generator.get_state(), state)


def test_changes_in_place_are_seen(pipe):
    fast = accelerate_pipeline(pipe)
    pipe.scheduler.alphas_cumprod.mul_(0.5)
    with pytest.raises(ConfigError, match="alphas_cumprod"):
        fast("a")


def test_settings_of_other_samplers_are_ignored():
    plain = EulerDiscreteScheduler(**SCHEDULE)
    karras = EulerDiscreteScheduler(**SCHEDULE, use_karras_sigmas=True, final_sigmas_type="sigma_min")
    settings = [{name: ddpm_scheduler(s).config[name] for name in DDPMScheduler().config} for s in (karras, plain)]
    assert settings[0] == settings[1]
