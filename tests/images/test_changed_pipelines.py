"""A pipeline is used as it is at each call, and what is refused at construction is refused after a change too."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback
from safetensors.torch import load_file, save_file

from asd_policy.errors import AsdPolicyError, CheckpointError, ConfigError, NumericalError
from asd_policy.images import AsdImagePipeline, AsdStableDiffusion, accelerate_pipeline
from asd_policy.images.scheduler import Thresholded
from tests.images.tiny_models import SCHEDULE, pixel_pipeline, pixel_unet, quiet, stable_diffusion, text_unet

WITHOUT_SPECULATION = {"draft": "frozen", "window": 1}
CALL = {"num_inference_steps": 7, "guidance_scale": 5.0, "negative_prompt": "z", "output_type": "np"}


@pytest.fixture
def pipe(tmp_path):
    return stable_diffusion(tmp_path)


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The same weights and a bit."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    return module


def another(component: str):
    def change(pipe) -> None:
        setattr(pipe, component, shaken(copy.deepcopy(getattr(pipe, component))))

    return change


CHANGES = {
    "another U-Net": another("unet"),
    "another VAE": another("vae"),
    "another text encoder": another("text_encoder"),
    "U-Net in place": lambda pipe: shaken(pipe.unet),
    "VAE in place": lambda pipe: shaken(pipe.vae),
    "text encoder in place": lambda pipe: shaken(pipe.text_encoder),
    "a U-Net of another size": lambda pipe: setattr(pipe, "unet", text_unet(sample_size=6)),
    "a U-Net with a projection of the text": lambda pipe: setattr(pipe, "unet", text_unet(encoder_hid_dim=8)),
    "a U-Net with text in its time": lambda pipe: setattr(
        pipe, "unet", text_unet(addition_embed_type="text", encoder_hid_dim=8, addition_embed_type_num_heads=2)
    ),
    "a VAE with another scale": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_component_is_followed(pipe, change):
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    before = fast("a b", generator=generators(1), **CALL).images
    change(pipe)
    got = fast("a b", generator=generators(1), **CALL).images
    expected = pipe("a b", generator=generators(1), **CALL).images
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)
    assert got.shape != before.shape or np.abs(got - before).max() > 1e-3


def test_a_changed_unet_of_a_ddpm_pipeline_is_followed():
    pipe = pixel_pipeline()
    fast = accelerate_pipeline(pipe, **WITHOUT_SPECULATION)
    for change in (lambda: shaken(pipe.unet), lambda: setattr(pipe, "unet", shaken(copy.deepcopy(pipe.unet)))):
        change()
        expected = pipe(2, generators(2), 20, output_type="np").images
        np.testing.assert_allclose(
            fast(2, generator=generators(2), output_type="np").images, expected, rtol=0, atol=2e-4
        )


def test_another_precision_is_followed(pipe):
    fast = accelerate_pipeline(pipe)
    single = fast("a", generator=generators(1), **CALL).images
    pipe.unet.to(torch.bfloat16)  # alone, which diffusers' own loop does not take
    half = fast("a", generator=generators(1), **CALL).images
    assert not np.array_equal(half, single)
    pipe.to(torch.bfloat16)
    assert np.isfinite(fast("a", generator=generators(1), **CALL).images).all()
    pipe.to(torch.float32)
    assert fast("a", generator=generators(1), **CALL).images.shape == single.shape


NEEDY = {
    "time_cond_proj_dim": {"time_cond_proj_dim": 8},
    "encoder_hid_dim_type": {"encoder_hid_dim_type": "ip_image_proj"},
    "addition_embed_type": {"addition_embed_type": "text_time"},
    "class_embed_type": {"class_embed_type": "timestep"},
    "num_class_embeds": {"num_class_embeds": 3},
    "takes 9 channels": {"in_channels": 9},
    "returns 8": {"out_channels": 8},
}


@pytest.mark.parametrize(("message", "config"), NEEDY.items(), ids=NEEDY)
def test_unets_that_need_more_are_refused(pipe, message, config):
    fast, state = accelerate_pipeline(pipe), torch.get_rng_state()
    pipe.unet.register_to_config(**config)
    for refused in (lambda: accelerate_pipeline(pipe), lambda: fast("a")):
        with pytest.raises(ConfigError, match=message):
            refused()
    assert torch.equal(torch.get_rng_state(), state)


def test_distilled_unets_are_refused(pipe):
    """diffusers embeds the guidance scale for them."""
    pipe.unet = text_unet(time_cond_proj_dim=8)
    with pytest.raises(ConfigError, match="time_cond_proj_dim 8"):
        accelerate_pipeline(pipe)


def test_components_that_do_not_fit_are_refused_before_the_first_round(pipe):
    fast, rounds = accelerate_pipeline(pipe), []
    pipe.unet.register_forward_hook(lambda *arguments: rounds.append(1))
    for component, name, value, message in (
        (pipe.vae, "latent_channels", 16, "the VAE decodes 16"),
        (pipe.unet, "cross_attention_dim", 768, "the U-Net expects 768"),
    ):
        kept = component.config[name]
        component.register_to_config(**{name: value})
        with pytest.raises(ConfigError, match=message):
            fast("a")
        component.register_to_config(**{name: kept})
    pipe.safety_checker = torch.nn.Identity()
    with pytest.raises(ConfigError, match="no feature_extractor"):
        fast("a")
    assert not rounds


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ({"out_channels": 2}, "returns 2"),
        ({"in_channels": 2}, "takes 2"),
        ({"sample_size": None}, "no sample_size"),
        ({"sample_size": (4, 4, 4)}, "a height and a width"),
        ({"sample_size": 0}, "sample_size is 0"),
    ],
)
def test_pixel_unets_that_need_more_are_refused(config, message):
    pipe = pixel_pipeline()
    fast = accelerate_pipeline(pipe)
    pipe.unet.register_to_config(**config)
    for refused in (lambda: accelerate_pipeline(pipe), fast):
        with pytest.raises(ConfigError, match=message):
            refused()


class Described(StableDiffusionPipeline):
    """A subclass that is called like its parent."""


class WithItsOwnCall(StableDiffusionPipeline):
    def __call__(self, prompt):
        return prompt


class WithItsOwnLatents(StableDiffusionPipeline):
    def prepare_latents(self, *arguments):
        return 2 * super().prepare_latents(*arguments)


class PixelsWithTheirOwnCall(DDPMPipeline):
    def __call__(self):
        return None


def test_pipelines_of_other_kinds_are_refused(pipe):
    parts = {**pipe.components, "requires_safety_checker": False}
    assert accelerate_pipeline(quiet(Described(**parts)))("a").images
    for kind, message in (
        (WithItsOwnCall, "its own __call__"),
        (WithItsOwnLatents, "its own prepare_latents"),
        (StableDiffusionImg2ImgPipeline, "Got a StableDiffusionImg2ImgPipeline"),
    ):
        for make in (accelerate_pipeline, AsdStableDiffusion):
            with pytest.raises(ConfigError, match=message):
                make(kind(**parts))
    pixels = pixel_pipeline()
    for other, message in (
        (PixelsWithTheirOwnCall(**pixels.components), "its own __call__"),
        (DDIMPipeline(**pixels.components), "Got a DDIMPipeline"),
        (DDPMPipeline(pipe.unet, pixels.scheduler), "expected a UNet2DModel"),
        (DDPMPipeline(None, pixels.scheduler), "has no unet"),
        (DDPMPipeline(pixels.unet, None), "has no scheduler"),
        (pipe, "Got a StableDiffusionPipeline"),
        (None, "Got a NoneType"),
    ):
        with pytest.raises(ConfigError, match=message):
            AsdImagePipeline(other)
    for component, message in (("unet", "has no unet"), ("vae", "has no vae"), ("scheduler", "has no scheduler")):
        changed = quiet(StableDiffusionPipeline(**parts))
        fast = accelerate_pipeline(changed)
        setattr(changed, component, None)
        with pytest.raises(ConfigError, match=message):
            fast("a")
    pipe.unet = pixel_unet()
    with pytest.raises(ConfigError, match="expected a UNet2DConditionModel"):
        accelerate_pipeline(pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": "pth"}, "Unknown draft 'pth'. Did you mean 'path'"),
        ({"draft": ["path"]}, "Unknown draft"),
        ({"window": 0}, "window is 0"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": True}, "window is True"),
        ({"window": "auto"}, "window is 'auto'"),
        ({"window": (1, 2, "3")}, "window is"),
        ({"max_states": 0}, "max_states is 0"),
        ({"max_states": 2.0}, "max_states is 2.0"),
    ],
)
def test_bad_options_are_refused_at_construction(pipe, options, message):
    for some in (pipe, pixel_pipeline()):
        with pytest.raises(ConfigError, match=message):
            accelerate_pipeline(some, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "pndm"}, "Unknown sampler 'pndm'"),
        ({"widow": 3}, "'widow'. Did you mean 'window'"),
        ({"capture": "jit"}, "Unknown capture"),
        ({"sampler": "ddim", "num_steps": 21}, "1 to 20"),
        ({"sampler": "ddim", "window": 3}, "option of sampler 'ddim'"),
    ],
)
def test_bad_samplers_are_refused_at_construction(options, message):
    pipe = pixel_pipeline()
    with pytest.raises(ConfigError, match=message):
        AsdImagePipeline(pipe, **options)
    with pytest.raises(ConfigError, match=message):
        AsdImagePipeline(pipe, "ddpm").with_sampler(**{"sampler": "asd", **options})


@pytest.mark.parametrize("window", [np.int64(8), (8,) * 7])
def test_windows_of_other_kinds(window):
    fast, plain = (accelerate_pipeline(pixel_pipeline(), window=w, max_states=np.int64(5)) for w in (window, 8))
    got, expected = (f(generator=generators(1), num_inference_steps=7, output_type="pt").images for f in (fast, plain))
    assert torch.equal(got, expected)


@pytest.fixture
def folder(tmp_path):
    pixel_pipeline().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"_class_name": 3}', None])
def test_damaged_folders(folder, file, text):
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(AsdPolicyError):
        AsdImagePipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_out.bias": None}, "missing conv_out.bias"),
        ({"extra": torch.zeros(1)}, "unexpected extra"),
        ({"conv_out.bias": torch.zeros(3)}, "conv_out.bias"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    """diffusers leaves missing ones at random, with a warning."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(CheckpointError, match=message):
        AsdImagePipeline.from_pretrained(folder)


def test_other_folders(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        AsdImagePipeline.from_pretrained(tmp_path / "nowhere")
    stable_diffusion(tmp_path / "sd")
    with pytest.raises(AsdPolicyError, match="UNet2DModel"):
        AsdImagePipeline.from_pretrained(tmp_path / "sd")
    pixel_pipeline().save_pretrained(tmp_path / "pixels")
    index = tmp_path / "pixels" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["diffusers", "NoSuchUnet"]}))
    with pytest.raises(CheckpointError, match="NoSuchUnet"):
        AsdImagePipeline.from_pretrained(tmp_path / "pixels")
    with pytest.raises(ConfigError, match="window is 0"):
        AsdImagePipeline.from_pretrained(Path(__file__).parents[2] / "checkpoints" / "digits", window=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_outputs_that_are_not_finite_are_an_error(pipe, value):
    bounds = {"thresholding": True, "sample_max_value": 1.5}
    pixels = [
        pixel_pipeline(clip_sample=False),
        pixel_pipeline(**bounds),
        pixel_pipeline(prediction_type="sample", **bounds),
    ]
    for some in [pipe, *pixels]:
        fast = accelerate_pipeline(some)
        torch.nn.init.constant_(some.unet.conv_out.bias, value)
        with pytest.raises(NumericalError):
            fast(**({"prompt": "a"} if some is pipe else {}))
        assert fast.stats is None
        torch.nn.init.zeros_(some.unet.conv_out.bias)
        fast(**({"prompt": "a"} if some is pipe else {}))  # and is over with it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_thresholding_hides_nothing(value):
    x0 = torch.tensor([[0.0, 3.0, value, -2.0], [0.0, 3.0, -9.0, 1.0]]).view(2, 1, 2, 2)
    thresholded = Thresholded(lambda x, t, cond: x0, 0.5, 1.5)(x0, torch.zeros(2), None)
    assert not thresholded[0].isfinite().all()
    assert thresholded[1].abs().max() == 1


def test_an_interruption_without_a_callback(pipe):
    fast = accelerate_pipeline(pipe, window=4)
    hook = pipe.unet.register_forward_hook(lambda *arguments: setattr(pipe, "_interrupt", True))
    assert fast("a", output_type="latent").images.isfinite().all()
    assert fast.stats is None
    hook.remove()
    fast("a")
    assert fast.stats is not None


def in_place(pipe, step, timestep, tensors):
    tensors["latents"].mul_(1.1)


def in_place_texts(pipe, step, timestep, tensors):
    tensors["prompt_embeds"].mul_(1.1)


def less_guidance(pipe, step, timestep, tensors):
    pipe._guidance_scale = 0.0


def another_scheduler(pipe, step, timestep, tensors):
    pipe.scheduler = DDPMScheduler(**SCHEDULE)


def nothing_to_return(pipe, step, timestep, tensors):
    return [tensors]


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (in_place, "latents"),
        (in_place_texts, "prompt_embeds"),
        (less_guidance, "guidance_scale"),
        (another_scheduler, "scheduler"),
        (nothing_to_return, "returned a list"),
        (SDCFGCutoffCallback(cutoff_step_ratio=0.4), "SDCFGCutoffCallback"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_callback_that_changes_the_run_is_refused(pipe, callback, message):
    fast = accelerate_pipeline(pipe, window=4)
    inputs = ["latents", "prompt_embeds"]
    with pytest.raises(ConfigError, match=message):
        fast("a", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=inputs)


def test_a_callback_that_fails_leaves_the_pipeline_usable(pipe):
    def failing(pipe, step, timestep, tensors):
        raise ZeroDivisionError

    fast = accelerate_pipeline(pipe, window=4)
    expected = fast("a", generator=generators(1), **CALL).images
    with pytest.raises(ZeroDivisionError):
        fast("a", generator=generators(1), callback_on_step_end=failing)
    assert fast.stats is None
    again = fast("a", generator=generators(1), callback_on_step_end=lambda *arguments: None, **CALL).images
    assert np.array_equal(again, expected)


def test_equal_tensors_may_be_returned(pipe):
    def copying(pipe, step, timestep, tensors):
        return {name: tensor.clone() for name, tensor in tensors.items()}

    fast = accelerate_pipeline(pipe)
    fast("a", callback_on_step_end=copying, callback_on_step_end_tensor_inputs=("latents", "prompt_embeds"))
