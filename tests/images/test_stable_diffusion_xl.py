"""accelerate_pipeline on a Stable Diffusion XL of random weights: diffusers' own images, or a refusal by name."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.images import AsdStableDiffusionXL, accelerate_pipeline
from tests.core import laws
from tests.images.test_calls import Scaled, generators, randn
from tests.images.tiny_models import LATENT, quiet, stable_diffusion, stable_diffusion_xl, text_unet

WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}
BASE = {"prompt": "a b", "num_inference_steps": 7, "guidance_scale": 5.0, "output_type": "latent"}
EMBEDS = {"prompt": None, "prompt_embeds": randn(1, 6, 16), "pooled_prompt_embeds": randn(1, 4)}
NEGATIVE_EMBEDS = {
    "negative_prompt_embeds": randn(1, 6, 16, seed=4),
    "negative_pooled_prompt_embeds": randn(1, 4, seed=4),
}
NEGATIVE_SIZES = {"negative_original_size": (64, 32), "negative_target_size": (8, 8)}


def make_pipe(folder, **scheduler) -> StableDiffusionXLPipeline:
    pipe = stable_diffusion_xl(folder, **scheduler)
    pipe.unet.set_attn_processor(Scaled())
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return make_pipe(tmp_path_factory.mktemp("sdxl"))


CHANGING = {
    "prompt": {"prompt": ["a", "b c"]},
    "prompt_2": {"prompt_2": "d"},
    "height": {"height": 16},
    "width": {"width": 24},
    "num_inference_steps": {"num_inference_steps": 10},
    "timesteps": {"timesteps": [17, 9, 4]},
    "guidance_scale": {"guidance_scale": 0.0},
    "negative_prompt": {"negative_prompt": "z"},
    "negative_prompt_2": {"negative_prompt": "z", "negative_prompt_2": "y"},
    "num_images_per_prompt": {"num_images_per_prompt": 2},
    "latents": {"latents": randn(1, *LATENT)},
    "prompt_embeds": EMBEDS,
    "negative_prompt_embeds": NEGATIVE_EMBEDS,
    "pooled_prompt_embeds": {**EMBEDS, "pooled_prompt_embeds": randn(1, 4, seed=5)},
    "negative_pooled_prompt_embeds": {**NEGATIVE_EMBEDS, "negative_pooled_prompt_embeds": randn(1, 4, seed=5)},
    "output_type": {"output_type": "np"},
    "cross_attention_kwargs": {"cross_attention_kwargs": {"strength": 0.2}},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "original_size": {"original_size": (64, 32)},
    "crops_coords_top_left": {"crops_coords_top_left": (3, 0)},
    "target_size": {"target_size": (64, 8)},
    "negative_original_size": NEGATIVE_SIZES,
    "negative_crops_coords_top_left": {**NEGATIVE_SIZES, "negative_crops_coords_top_left": (2, 5)},
    "negative_target_size": {**NEGATIVE_SIZES, "negative_target_size": (64, 32)},
    "clip_skip": {"clip_skip": 1},
}
"""Argument of StableDiffusionXLPipeline's call -> a call in which it matters."""
INDIFFERENT = {
    "eta": {"eta": 1.0},
    "generator": {"generator": generators(1)[0]},
    "return_dict": {"return_dict": True},
    "sigmas": {"sigmas": None},
    "denoising_end": {"denoising_end": None},
    "ip_adapter_image": {"ip_adapter_image": None},
    "ip_adapter_image_embeds": {"ip_adapter_image_embeds": None},
    "callback_on_step_end": {"callback_on_step_end": lambda pipe, step, timestep, tensors: tensors},
    "callback_on_step_end_tensor_inputs": {"callback_on_step_end_tensor_inputs": ["add_time_ids"]},
}


def images(f, arguments):
    """With the noise of seeds 0, 1, ..."""
    arguments = {**BASE, **arguments}
    prompts = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
    n = prompts * arguments.get("num_images_per_prompt", 1)
    fresh = generators(n) if n > 1 else generators(1)[0]
    return torch.as_tensor(f(**{**arguments, "generator": fresh}).images)


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_every_argument_of_diffusers_is_known():
    theirs, ours = (
        list(inspect.signature(c.__call__).parameters)[1:] for c in (StableDiffusionXLPipeline, AsdStableDiffusionXL)
    )
    assert theirs[:-1] == ours[:-1]  # positions too; the last takes the rest
    assert set(theirs[:-1]) == {*CHANGING, *INDIFFERENT}


@pytest.mark.parametrize("name", [*CHANGING, *INDIFFERENT])
def test_an_accepted_argument_gives_diffusers_images(pipe, name):
    arguments = {**CHANGING, **INDIFFERENT}[name]
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    got = images(fast, arguments)
    assert_same(got, images(pipe, arguments))
    base = images(fast, {})
    assert (name in CHANGING) == (got.shape != base.shape or not torch.allclose(got, base, rtol=1e-4, atol=1e-4))


COMBINED = [
    {"guidance_scale": 1.0},
    {"guidance_scale": 1.0, "guidance_rescale": 0.7, "negative_prompt": "z"},
    {"guidance_rescale": 1.0, "negative_prompt": "z", "clip_skip": 0, "cross_attention_kwargs": {"strength": 2.0}},
    {"prompt": ["a", "b"], "prompt_2": ["c", "d"], "negative_prompt": ["y", "z"], "num_images_per_prompt": 2},
    {"prompt": ["a", "b"], "latents": randn(2, *LATENT), "timesteps": [19, 10, 1, 0], "target_size": (4, 5)},
    {"latents": randn(1, 4, 4, 6)},
    {**EMBEDS, **NEGATIVE_EMBEDS, **NEGATIVE_SIZES, "height": 16, "width": 8},
    {"output_type": "pt"},
]


@pytest.mark.parametrize("arguments", COMBINED, ids=lambda arguments: " ".join(arguments))
def test_arguments_together(pipe, arguments):
    assert_same(*(images(f, arguments) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe)))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_prediction_types(prediction_type, tmp_path):
    pipe = make_pipe(tmp_path, prediction_type=prediction_type)
    assert_same(*(images(f, {}) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe)))


def test_each_image_has_its_own_negative_sizes(pipe):
    """diffusers gives some images of a batch the sizes of the other half."""
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    arguments = {**BASE, **NEGATIVE_SIZES}
    both = fast(**{**arguments, "prompt": ["a", "b"]}, generator=generators(2)).images
    alone = [
        pipe(**{**arguments, "prompt": text}, generator=[g]).images for text, g in zip("ab", generators(2), strict=True)
    ]
    assert_same(both, torch.cat(alone))


def test_zeros_for_an_empty_negative_prompt(pipe):
    """A setting of the pipeline."""
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    before = images(fast, {})
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        after = images(fast, {})
        assert_same(after, images(pipe, {}))
        assert not torch.allclose(before, after, atol=1e-3)
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0]}, "sigmas is not supported"),
        ({"denoising_end": 0.8}, "denoising_end is not supported"),
        ({"ip_adapter_image": Image.new("RGB", (8, 8))}, "ip_adapter_image is not supported"),
        ({"callback": print, "callback_steps": 1}, "pass callback_on_step_end"),
        ({"guidance": 3.0}, "Unknown argument 'guidance'. Did you mean 'guidance_scale'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"output_type": "jpg"}, "Unknown output_type 'jpg'"),
        ({"num_inference_steps": 21}, "1 to 20"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"height": 7}, "divisible by 8"),
        ({"height": 16.0}, "is 16.0"),
        ({"timesteps": [3, 9]}, "descending"),
        ({"latents": randn(2, *LATENT)}, r"shape \(2, 4, 2, 2\)"),
        ({"latents": randn(1, *LATENT), "height": 16}, r"expected finite values of \(1, 4, 4, 2\)"),
        ({"clip_skip": 9}, "index out of range"),
        ({"prompt": None}, "Provide either `prompt`"),
        ({"prompt": 3}, "`prompt` has to be of type"),
        ({"prompt_2": 3}, "`prompt_2` has to be of type"),
        ({"prompt_2": [1]}, r"prompt_2 is \[1\]"),
        ({"prompt": ["a", "b"], "prompt_2": ["c"]}, "Sizes of tensors must match"),
        ({"prompt": ["a", "b"], "negative_prompt": ["z"]}, "negative_prompt"),
        ({"negative_prompt_2": "z"}, "negative_prompt_2 has no effect without negative_prompt"),
        ({**EMBEDS, "pooled_prompt_embeds": None}, "`pooled_prompt_embeds` also have to be passed"),
        ({**EMBEDS, "prompt": "a"}, "Cannot forward both"),
        ({**EMBEDS, "prompt_embeds": randn(1, 6, 8)}, "prompt_embeds has shape .* expects 16"),
        ({**EMBEDS, "pooled_prompt_embeds": randn(1, 5)}, "pooled_prompt_embeds has shape .* expects 4"),
        ({**EMBEDS, "pooled_prompt_embeds": randn(1, 1, 4)}, r"expected a tensor \(B, P\)"),
        ({**EMBEDS, "pooled_prompt_embeds": randn(2, 4)}, "Got 1 embeddings and 2 pooled embeddings"),
        ({"negative_pooled_prompt_embeds": randn(1, 4)}, "has no effect without negative_prompt_embeds"),
        ({**NEGATIVE_EMBEDS, "negative_pooled_prompt_embeds": None}, "also have to be passed"),
        ({**NEGATIVE_EMBEDS, "negative_prompt_embeds": randn(1, 5, 16)}, "expected the same"),
        ({"original_size": (64,)}, r"original_size is \(64,\); expected two numbers"),
        ({"original_size": 64}, "original_size is 64; expected two numbers"),
        ({"target_size": (64, None)}, "target_size is None"),
        ({"crops_coords_top_left": None}, "crops_coords_top_left is None"),
        ({"negative_original_size": (64, 64)}, "expected both or neither"),
        ({"negative_crops_coords_top_left": (1, 1)}, "negative_crops_coords_top_left has no effect"),
        ({"generator": generators(2)}, "2 generators"),
        ({"callback_on_step_end_tensor_inputs": ["negative_prompt_embeds"]}, "add_text_embeds"),
    ],
)
def test_a_refused_argument_is_named(pipe, arguments, message):
    fast, state = accelerate_pipeline(pipe), torch.get_rng_state()
    with pytest.raises(ConfigError, match=message):
        fast(**{**BASE, **arguments})
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_rounds_and_each_output_type(pipe):
    fast = accelerate_pipeline(pipe, window=8, max_states=5)
    drawn = fast("a b c", num_images_per_prompt=2, generator=generators(2)).images
    assert [image.size for image in drawn] == [(8, 8)] * 2
    assert fast.stats.rounds.max() < 20
    for output_type, kind in (("pil", list), ("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)):
        (drawn,) = fast("a", num_inference_steps=5, output_type=output_type, return_dict=False)
        assert isinstance(drawn, kind)
        assert len(drawn) == 1


def test_callbacks_watch_and_stop_but_do_not_change(pipe):
    fast, told = accelerate_pipeline(pipe, window=4), []
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]

    def watching(given, step, timestep, tensors):
        assert given is pipe
        assert given.denoising_end is None
        told.append((step, {name: tensor.shape for name, tensor in tensors.items()}))
        return tensors

    def stopping(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 3

    def changing(pipe, step, timestep, tensors):
        tensors["add_time_ids"].add_(1)

    def call(callback):
        arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
        return fast(**BASE, generator=generators(1), **arguments).images

    finished = call(watching)
    assert len(told) == int(fast.stats.rounds[0])
    assert told[-1] == (
        6,
        {"latents": (1, *LATENT), "prompt_embeds": (1, 6, 16), "add_text_embeds": (1, 4), "add_time_ids": (1, 6)},
    )
    assert not torch.equal(call(stopping), finished)
    assert fast.stats is None
    with pytest.raises(ConfigError, match="changed or returned other add_time_ids"):
        call(changing)


class Watermark:
    def apply_watermark(self, images):
        return images * 0.5


def test_what_comes_after_the_latents(pipe):
    """The watermark, the VAE's means and its precision."""
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)

    def check():
        drawn = images(fast, {"output_type": "np"})
        np.testing.assert_allclose(drawn, images(pipe, {"output_type": "np"}), rtol=0, atol=2e-3)
        return drawn

    seen = [check()]
    pipe.watermark = Watermark()
    seen.append(check())
    pipe.watermark = None
    pipe.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    seen.append(check())
    pipe.vae.register_to_config(latents_mean=None, latents_std=None)
    assert all(not torch.allclose(one, seen[0], atol=1e-3) for one in seen[1:])
    pipe.vae.to(torch.float16)
    torch.testing.assert_close(check(), seen[0], rtol=0, atol=5e-3)
    assert pipe.vae.dtype == torch.float16
    pipe.vae.to(torch.float32)


def test_half_precision(tmp_path):
    """The network computes in its own precision, the sampler in float32; diffusers' latents are near."""
    pipe = make_pipe(tmp_path).to(torch.bfloat16)
    got, expected = (images(f, {}) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe))
    assert got.dtype == torch.float32
    assert (got - expected.float()).abs().max() < 0.1 * expected.abs().max()


def test_pipelines_that_do_not_fit(pipe, tmp_path):
    plain = stable_diffusion(tmp_path)
    unet, plain_unet = pipe.unet, plain.unet
    fast, fast_plain = accelerate_pipeline(pipe), accelerate_pipeline(plain)
    pipe.unet, plain.unet = plain_unet, unet
    for refused, message in (
        (lambda: accelerate_pipeline(pipe), "addition_embed_type None; expected 'text_time'"),
        (lambda: fast("a"), "addition_embed_type None; expected 'text_time'"),
        (lambda: accelerate_pipeline(plain), "addition_embed_type 'text_time'; expected None or 'text'"),
        (lambda: fast_plain("a"), "addition_embed_type 'text_time'; expected None or 'text'"),
    ):
        with pytest.raises(ConfigError, match=message):
            refused()
    refiner = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2, "cross_attention_dim": 16}
    pipe.unet = text_unet(projection_class_embeddings_input_dim=5 * 2 + 4, **refiner)
    with pytest.raises(ConfigError, match="pooled output of the text encoders has shape"):
        fast("a")
    pipe.unet = text_unet(projection_class_embeddings_input_dim=12, **refiner)
    with pytest.raises(ConfigError, match="room for a pooled embedding"):
        accelerate_pipeline(pipe)
    pipe.unet, encoder = unet, pipe.text_encoder_2
    pipe.text_encoder_2 = None
    with pytest.raises(ConfigError, match="pass prompt_embeds and pooled_prompt_embeds"):
        fast("a")
    embedded = {**BASE, **EMBEDS, **NEGATIVE_EMBEDS}
    assert_same(
        *(
            f(**embedded, generator=generators(1)).images
            for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe)
        )
    )
    pipe.text_encoder_2 = encoder
    with pytest.raises(UnknownNameError, match="capture"):
        accelerate_pipeline(pipe, capture="jit")


class WithItsOwnCall(StableDiffusionXLPipeline):
    def __call__(self, prompt):
        return prompt


def test_subclasses_with_a_call_of_their_own_are_refused(pipe):
    with pytest.raises(ConfigError, match="its own __call__"):
        accelerate_pipeline(quiet(WithItsOwnCall(**pipe.components)))


def test_law_of_a_guided_prompt(tmp_path):
    pipe, n = make_pipe(tmp_path, prediction_type="sample"), 1000

    def drawn(seed, **options):
        arguments = {"num_images_per_prompt": n, "negative_prompt": "z", "guidance_scale": 4.0, **NEGATIVE_SIZES}
        fast = accelerate_pipeline(pipe, **options)
        generator = torch.Generator().manual_seed(seed)
        return fast(**{**BASE, **arguments}, generator=generator).images, fast.stats

    expected, _ = drawn(1, **WITHOUT_SPECULATION)
    x, stats = drawn(2, draft="path", window=8)
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    assert stats.rounds.float().mean() < 7
    assert stats.acceptance[:-1].min() < 0.9


@pytest.mark.slow
def test_compiled(pipe):
    captured, eager = (
        accelerate_pipeline(pipe, draft="reuse", window=8, capture=name) for name in ("compile", "eager")
    )
    for changes in ({}, {"guidance_scale": 3.0}):
        arguments = {**BASE, "num_images_per_prompt": 4, "negative_prompt": "z", **changes}
        got, expected = (f(**arguments, generator=generators(4)).images for f in (captured, eager))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(captured.stats.rounds, eager.stats.rounds)
