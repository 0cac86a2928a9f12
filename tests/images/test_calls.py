"""The contract of a call: each argument of diffusers' pipelines gives diffusers' own images, or is refused by name."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image

from asd_policy.errors import ConfigError
from asd_policy.images import AsdImagePipeline, AsdStableDiffusion, accelerate_pipeline
from tests.images.tiny_models import EVENT, LATENT, pixel_pipeline, quiet, stable_diffusion

WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}
BASE = {"prompt": "a b", "num_inference_steps": 7, "guidance_scale": 5.0, "output_type": "latent"}


def randn(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


class Scaled(AttnProcessor2_0):
    """Attention that reads one of `cross_attention_kwargs`."""

    def __call__(self, attn, hidden_states, *arguments, strength: float = 1.0, **options):
        return strength * super().__call__(attn, hidden_states, *arguments, **options)


def make_pipe(folder) -> StableDiffusionPipeline:
    pipe = stable_diffusion(folder)
    pipe.unet.set_attn_processor(Scaled())
    return pipe


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return make_pipe(tmp_path_factory.mktemp("sd"))


CHANGING = {
    "prompt": {"prompt": ["a", "b c"]},
    "height": {"height": 16, "width": 24},
    "width": {"height": 24, "width": 8},
    "num_inference_steps": {"num_inference_steps": 10},
    "timesteps": {"timesteps": [17, 9, 4]},
    "guidance_scale": {"guidance_scale": 0.0},
    "negative_prompt": {"negative_prompt": "z"},
    "num_images_per_prompt": {"num_images_per_prompt": 2},
    "latents": {"latents": randn(1, *LATENT)},
    "prompt_embeds": {"prompt": None, "prompt_embeds": randn(1, 6, 8)},
    "negative_prompt_embeds": {"negative_prompt_embeds": randn(1, 6, 8)},
    "output_type": {"output_type": "np"},
    "cross_attention_kwargs": {"cross_attention_kwargs": {"strength": 0.2}},
    "guidance_rescale": {"guidance_rescale": 0.7},
    "clip_skip": {"clip_skip": 1},
}
"""Argument of StableDiffusionPipeline's call -> a call in which it matters."""
INDIFFERENT = {
    "eta": {"eta": 1.0},
    "generator": {"generator": generators(1)[0]},
    "return_dict": {"return_dict": True},
    "sigmas": {"sigmas": None},
    "ip_adapter_image": {"ip_adapter_image": None},
    "ip_adapter_image_embeds": {"ip_adapter_image_embeds": None},
    "callback_on_step_end": {"callback_on_step_end": lambda pipe, step, timestep, tensors: tensors},
    "callback_on_step_end_tensor_inputs": {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]},
}


def images(f, arguments):
    """With the noise of seeds 0, 1, ... unless told otherwise."""
    arguments = {**BASE, **arguments}
    prompts = len(arguments["prompt"]) if isinstance(arguments["prompt"], list) else 1
    n = prompts * arguments.get("num_images_per_prompt", 1)
    fresh = generators(n) if n > 1 else generators(1)[0]
    return torch.as_tensor(f(**{**arguments, "generator": fresh}).images)


def test_every_argument_of_diffusers_is_known():
    theirs, ours = (
        list(inspect.signature(c.__call__).parameters)[1:] for c in (StableDiffusionPipeline, AsdStableDiffusion)
    )
    assert theirs[:-1] == ours[:-1]  # positions too; the last takes the rest
    assert set(theirs[:-1]) == {*CHANGING, *INDIFFERENT}


@pytest.mark.parametrize("name", [*CHANGING, *INDIFFERENT])
def test_an_accepted_argument_gives_diffusers_images(pipe, name):
    arguments = {**CHANGING, **INDIFFERENT}[name]
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    got, expected = images(fast, arguments), images(pipe, arguments)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    base = images(fast, {})
    assert (name in CHANGING) == (got.shape != base.shape or not torch.allclose(got, base, rtol=1e-4, atol=1e-3))


COMBINED = [
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.3},
    {"guidance_scale": 1.0, "guidance_rescale": 0.7},
    {"guidance_rescale": 1.0, "negative_prompt": "z", "clip_skip": 0, "cross_attention_kwargs": {"strength": 2.0}},
    {"prompt": ["a", "b"], "negative_prompt": ["y", "z"], "num_images_per_prompt": 2},
    {"prompt": ["a", "b"], "latents": randn(2, *LATENT), "timesteps": [19, 10, 1, 0]},
    {"latents": randn(1, 4, 4, 6)},
    {"timesteps": [12]},
    {"timesteps": torch.tensor([12, 0])},
    {"num_inference_steps": np.int64(7), "num_images_per_prompt": np.int32(1), "guidance_scale": np.float32(3)},
    {"output_type": "pt"},
]


@pytest.mark.parametrize("arguments", COMBINED, ids=lambda arguments: " ".join(arguments))
def test_arguments_together(pipe, arguments):
    got, expected = (images(f, arguments) for f in (accelerate_pipeline(pipe, **WITHOUT_SPECULATION), pipe))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [1.0]}, "sigmas is not supported"),
        ({"ip_adapter_image": Image.new("RGB", (8, 8))}, "ip_adapter_image is not supported"),
        ({"ip_adapter_image_embeds": [randn(1, 1, 8)]}, "ip_adapter_image_embeds is not supported"),
        ({"callback": print, "callback_steps": 1}, "pass callback_on_step_end"),
        ({"callback_steps": 1}, "pass callback_on_step_end"),
        ({"guidance": 3.0}, "Unknown argument 'guidance'. Did you mean 'guidance_scale'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'"),
        ({"guidance_rescale": None}, "guidance_rescale is None"),
        ({"output_type": "jpg"}, "Unknown output_type 'jpg'"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"num_images_per_prompt": None}, "num_images_per_prompt is None"),
        ({"height": 16}, "both or neither"),
        ({"height": 16.0, "width": 16}, "is 16.0"),
        ({"timesteps": [3, 9]}, "descending"),
        ({"timesteps": [20, 9]}, "19 to 0"),
        ({"timesteps": [9, -1]}, "19 to 0"),
        ({"timesteps": []}, "descending"),
        ({"timesteps": [3.5]}, "whole numbers"),
        ({"timesteps": "all"}, "str"),
        ({"latents": randn(2, *LATENT)}, r"shape \(2, 4, 2, 2\)"),
        ({"latents": randn(1, 3, 2, 2)}, r"shape \(1, 3, 2, 2\)"),
        ({"latents": randn(*LATENT)}, r"expected a tensor \(B, C, H, W\)"),
        ({"latents": randn(1, *LATENT) / 0}, "expected finite values"),
        ({"latents": randn(1, *LATENT), "height": 16, "width": 16}, r"expected finite values of \(1, 4, 4, 4\)"),
        ({"latents": [0.0]}, "expected a tensor"),
        ({"clip_skip": 9}, "index out of range"),
        ({"clip_skip": -1}, "clip_skip is -1"),
        ({"cross_attention_kwargs": [1]}, "expected a dict"),
        ({"cross_attention_kwargs": {"ip_adapter_masks": randn(1)}}, "ip_adapter_masks"),
        ({"prompt": [1, 2]}, r"prompt is \[1, 2\]"),
        ({"prompt": []}, r"prompt is \[\]"),
        ({"negative_prompt": [None]}, r"negative_prompt is \[None\]"),
        ({"prompt": None, "prompt_embeds": randn(6, 8)}, "prompt_embeds is"),
        ({"prompt": None, "prompt_embeds": randn(1, 6, 7)}, "expects 8"),
        ({"negative_prompt_embeds": randn(2, 6, 8)}, "expected the same"),
        ({"negative_prompt_embeds": randn(1, 5, 8)}, "expected the same"),
        ({"generator": 3}, "generator is 3"),
        ({"generator": [3]}, "expected a torch.Generator"),
        ({"callback_on_step_end": 3}, "callback_on_step_end is 3"),
        ({"callback_on_step_end_tensor_inputs": None}, "expected a list"),
    ],
)
def test_a_refused_argument_is_named(pipe, arguments, message):
    fast, state = accelerate_pipeline(pipe), torch.get_rng_state()
    with pytest.raises(ConfigError, match=message):
        fast(**{**BASE, **arguments})
    assert torch.equal(torch.get_rng_state(), state)


def test_each_output_type(pipe):
    for output_type, kind in (("pil", list), ("np", np.ndarray), ("pt", torch.Tensor), ("latent", torch.Tensor)):
        drawn, flags = accelerate_pipeline(pipe)("a", output_type=output_type, return_dict=False)
        assert isinstance(drawn, kind)
        assert len(drawn) == 1
        assert flags is None


class Checker(torch.nn.Module):
    """A safety checker that blackens every other image."""

    device = torch.device("cpu")

    def forward(self, images, clip_input):
        assert clip_input.dtype == torch.float32
        flags = [row % 2 == 1 for row in range(len(images))]
        return torch.stack([image * (not flag) for image, flag in zip(images, flags, strict=True)]), flags


class Extractor:
    def __call__(self, images, return_tensors):
        return self

    def to(self, device):
        return self

    pixel_values = torch.zeros(2, 3, 4, 4)


def test_the_safety_checker_is_asked(pipe):
    checked = quiet(
        StableDiffusionPipeline(**{**pipe.components, "safety_checker": None}, requires_safety_checker=False)
    )
    checked.safety_checker, checked.feature_extractor = Checker(), Extractor()
    arguments = {**BASE, "num_images_per_prompt": 2, "output_type": "np"}
    drawn = [
        f(**arguments, generator=generators(2)) for f in (accelerate_pipeline(checked, **WITHOUT_SPECULATION), checked)
    ]
    assert drawn[0].nsfw_content_detected == drawn[1].nsfw_content_detected == [False, True]
    np.testing.assert_allclose(drawn[0].images, drawn[1].images, rtol=0, atol=1e-3)
    assert not drawn[0].images[1].any()


PIXELS = {
    "batch_size": {"batch_size": np.int64(3)},
    "generator": {"generator": torch.Generator},
    "num_inference_steps": {"num_inference_steps": np.int64(7)},
    "output_type": {"output_type": "pil"},
    "return_dict": {"return_dict": False},
}


def test_ddpm_pipelines():
    assert set(inspect.signature(DDPMPipeline.__call__).parameters) == {"self", *PIXELS}
    pipe = pixel_pipeline()
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    for arguments in PIXELS.values():
        arguments = {"num_inference_steps": 20, "output_type": "np", **arguments}
        got, expected = (f(**{**arguments, "generator": generators(1)[0]}) for f in (fast, pipe))
        assert isinstance(got, tuple) == isinstance(expected, tuple)
        ours, theirs = (
            np.stack([np.asarray(i) for i in (r[0] if isinstance(r, tuple) else r.images)]) for r in (got, expected)
        )
        np.testing.assert_allclose(ours.astype(float), theirs.reshape(ours.shape).astype(float), rtol=0, atol=1)
        if arguments["output_type"] == "np":
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"output_type": "jpg"}, "Unknown output_type"),
        ({"num_inference_steps": "7"}, "num_inference_steps is '7'"),
        ({"num_inference_steps": 1000}, "1 to 20"),
        ({"generator": [torch.Generator()] * 2}, "2 generators"),
        ({"generator": 7}, "generator is 7"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"class_labels": [0.5]}, "float"),
        ({"class_labels": 1}, "int"),
        ({"class_labels": [torch.Generator()]}, "Generator"),
        ({"class_labels": [1], "guidance_scale": 2.0, "negative_label": 3}, "from 0 to 2"),
    ],
)
def test_refused_calls_of_ddpm_pipelines(arguments, message):
    classes = 3 if "class_labels" in arguments else None
    fast, state = accelerate_pipeline(pixel_pipeline(num_class_embeds=classes)), torch.get_rng_state()
    with pytest.raises(ConfigError, match=message):
        fast(**arguments)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "labels", [(0, 2), np.array([0, 2]), torch.tensor([0, 2])], ids=lambda value: type(value).__name__
)
def test_labels_of_any_integers(labels):
    fast = accelerate_pipeline(pixel_pipeline(num_class_embeds=3))
    arguments = {"guidance_scale": 2.0, "negative_label": np.int64(1), "output_type": "latent"}
    got, expected = (fast(2, some, generator=generators(2), **arguments).images for some in (labels, [0, 2]))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (4, 6)])
@pytest.mark.parametrize("shared", [False, True])
def test_the_noise_is_diffusers_whatever_the_size(size, shared):
    """torch's draws depend on how many values are drawn at once, unless they are a multiple of 16."""
    pipe = pixel_pipeline(prediction_type="sample", clip_sample=False)
    pipe.unet.register_to_config(sample_size=size)

    def noise():
        return generators(1)[0] if shared else generators(3)

    expected = pipe(3, noise(), 20, output_type="np").images
    got = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)(3, generator=noise(), output_type="np").images
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)


def test_images_are_ordinary_tensors_in_float32_whatever_the_default(pipe):
    fast, pixels = accelerate_pipeline(pipe), accelerate_pipeline(pixel_pipeline())

    def drawn():
        return fast(**BASE, generator=generators(1)).images, pixels(
            generator=generators(1), output_type="latent"
        ).images

    expected = drawn()
    assert expected[1].shape == (1, *EVENT)
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(*pair) for pair in zip(drawn(), expected, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
    for image in expected:
        image.mul_(0.5)
        image.requires_grad_().square().sum().backward()
        assert torch.equal(image.grad, 2 * image)


@pytest.mark.parametrize("labels", [1, "12", [0.0, 1.0], [[1], [2]], [None, 1]], ids=repr)
def test_labels_that_are_no_numbers_are_named(labels):
    images = AsdImagePipeline(quiet(pixel_pipeline(num_class_embeds=4, num_train_timesteps=5)))
    with pytest.raises(ConfigError, match="class_labels"):
        images(2, labels)


def test_labels_may_be_an_iterator():
    images = AsdImagePipeline(quiet(pixel_pipeline(num_class_embeds=4, num_train_timesteps=5)))
    first, again = (
        images(2, labels, generator=torch.Generator().manual_seed(0), output_type="np").images
        for labels in ([1, 2], iter([1, 2]))
    )
    np.testing.assert_array_equal(first, again)


def test_the_default_device_does_not_matter():
    images = AsdImagePipeline(quiet(pixel_pipeline(num_train_timesteps=5)))
    expected = images(2, generator=torch.Generator().manual_seed(0), output_type="np").images
    with torch.device("meta"):  # whatever is made there has no values
        actual = images(2, generator=torch.Generator().manual_seed(0), output_type="np").images
    np.testing.assert_array_equal(actual, expected)
