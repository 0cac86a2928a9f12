"""accelerate_pipeline on a Stable Diffusion of random weights: diffusers' latents, arguments, callbacks, refusals."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from PIL import Image

from asd_policy.errors import ConfigError
from asd_policy.images import accelerate_pipeline
from tests.images.tiny_models import LATENT, stable_diffusion

CALL = {"negative_prompt": "z", "guidance_scale": 5.0, "output_type": "latent"}
WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_without_speculation_it_draws_what_diffusers_draws(prediction_type, tmp_path):
    pipe = stable_diffusion(tmp_path, prediction_type=prediction_type)
    arguments = {**CALL, "prompt": ["a b", "c"], "negative_prompt": ["z", "y"], "num_images_per_prompt": 2}
    expected = pipe(generator=generators(4), num_inference_steps=10, **arguments).images
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    got = fast(generator=generators(4), num_inference_steps=10, **arguments).images
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    decoded = {**arguments, "output_type": "np"}
    expected = pipe(generator=generators(4), num_inference_steps=10, **decoded).images
    got = fast(generator=generators(4), num_inference_steps=10, **decoded).images
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)


def test_fewer_rounds_than_steps(pipe):
    fast = accelerate_pipeline(pipe, window=8)
    images = fast("a b c", num_images_per_prompt=2, generator=generators(2)).images
    assert [image.size for image in images] == [(8, 8)] * 2
    assert isinstance(images[0], Image.Image)
    assert fast.stats.rounds.max() < 20


def test_what_matters_and_what_does_not(pipe):
    fast = accelerate_pipeline(pipe, window=8)

    def latents(prompt="a b", accelerated=fast, **changes):
        return accelerated(prompt, **{**CALL, "generator": generators(1), **changes}).images

    base = latents()
    assert base.shape == (1, *LATENT)
    for changes in ({"prompt": "c"}, {"negative_prompt": "y"}, {"guidance_scale": 1.0}, {"guidance_scale": 6.0}):
        assert not torch.allclose(latents(**changes), base, atol=1e-2)
    assert latents(height=16, width=24).shape == (1, 4, 4, 6)
    assert torch.equal(latents(generator=torch.Generator().manual_seed(0)), base)
    assert torch.equal(latents(return_dict=True), base)
    toward, away = pipe.encode_prompt("a b", "cpu", 1, True, "z")
    embeds = {"prompt_embeds": toward, "negative_prompt_embeds": away, "negative_prompt": None}
    assert torch.equal(latents(None, **embeds), base)
    cut = latents(accelerated=accelerate_pipeline(pipe, window=8, max_states=3))
    torch.testing.assert_close(cut, base, rtol=1e-3, atol=1e-2)


def test_half_precision(tmp_path):
    """The network computes in its own precision, the sampler in float32."""
    fast = accelerate_pipeline(stable_diffusion(tmp_path).to(torch.bfloat16), window=8)
    assert fast("a", **CALL, generator=generators(1)).images.dtype == torch.float32
    assert fast("a", generator=generators(1)).images[0].size == (8, 8)


def test_a_tuple_if_asked(pipe):
    images, flags = accelerate_pipeline(pipe)("a", generator=generators(1), return_dict=False)
    assert len(images) == 1
    assert flags is None


def test_callbacks_are_told_of_every_round(pipe):
    fast, told = accelerate_pipeline(pipe, window=8), []

    def callback(given, step, timestep, tensors):
        assert given is pipe
        told.append((step, timestep, tensors["latents"].clone(), tensors["prompt_embeds"].shape))
        return tensors

    inputs = ["latents", "prompt_embeds"]
    arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
    latents = fast("a b", **CALL, generator=generators(1), **arguments).images
    steps, timesteps, seen, shapes = zip(*told, strict=True)
    assert len(steps) == int(fast.stats.rounds[0])
    assert list(steps) == sorted(set(steps))
    assert list(timesteps) == [19 - step for step in steps]
    assert torch.equal(seen[-1], latents)
    assert set(shapes) == {(1, 6, 8)}
    assert pipe.guidance_scale == CALL["guidance_scale"]
    assert pipe.num_timesteps == 20


def test_a_callback_may_stop_but_not_change(pipe):
    fast = accelerate_pipeline(pipe, window=4)

    def stopping(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 5
        return tensors

    def changing(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * 1.1}

    stopped = fast("a", **CALL, generator=generators(1), callback_on_step_end=stopping).images
    assert stopped.shape == (1, *LATENT)
    assert fast.stats is None
    assert not torch.equal(stopped, fast("a", **CALL, generator=generators(1)).images)
    with pytest.raises(ConfigError, match="returned other latents"):
        fast("a", **CALL, generator=generators(1), callback_on_step_end=changing)


def test_progress_bar(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    accelerate_pipeline(pipe)("a", generator=generators(1), num_inference_steps=10)
    pipe.set_progress_bar_config(disable=True)
    assert "10/10" in capsys.readouterr().err


def test_a_scheduler_of_another_sampler_stands_for_its_diffusion(pipe, tmp_path):
    other = stable_diffusion(tmp_path)
    settings = {name: pipe.scheduler.config[name] for name in ("num_train_timesteps", "beta_start", "beta_end")}
    other.scheduler = PNDMScheduler(**settings, steps_offset=1)  # as Stable Diffusion is shipped; has no clip_sample
    expected, got = (accelerate_pipeline(p)("a", **CALL, generator=generators(1)).images for p in (pipe, other))
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "`prompt` has to be of type"),
        ({"prompt": None}, "Provide either `prompt`"),
        ({"prompt": "a", "negative_prompt": ["y", "z"]}, "negative_prompt"),
        ({"prompt": ["a", "b"], "negative_prompt": ["z"]}, "negative_prompt"),
        ({"prompt": "a", "height": 7}, "divisible by 8"),
        ({"prompt": "a", "generator": generators(2)}, "2 generators"),
        ({"prompt": "a", "num_inference_steps": 21}, "1 to 20"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["nothing"]}, "nothing"),
    ],
)
def test_refused_calls(pipe, arguments, message):
    with pytest.raises(ConfigError, match=message):
        accelerate_pipeline(pipe)(**arguments)


def test_refused_pipelines(tmp_path):
    pipe = stable_diffusion(tmp_path)
    pipe.text_encoder = None
    with pytest.raises(ConfigError, match="pass prompt_embeds"):
        accelerate_pipeline(pipe)("a")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="FlowMatch"):
        accelerate_pipeline(pipe)
    pipe.vae = None
    with pytest.raises(ConfigError, match="has no vae"):
        accelerate_pipeline(pipe)
