"""AsdImagePipeline: diffusers' own images from the same noise, folders, labels, progress and refusals."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.images import AsdImagePipeline, accelerate_pipeline
from tests.images.tiny_models import pixel_pipeline, pixel_unet, quiet

K = 20


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [K, 7])
def test_the_plain_sampler_draws_what_diffusers_draws(prediction_type, num_steps):
    pipe = pixel_pipeline(prediction_type=prediction_type)
    expected = pipe(3, generators(3), num_steps, output_type="np").images
    ours = AsdImagePipeline(pipe, sampler="ddpm")
    got = ours(3, generator=generators(3), num_inference_steps=num_steps, output_type="np").images
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
    # With nothing speculated, ASD is the plain sampler: the frozen draft's mean is the step's own.
    alone = accelerate_pipeline(pipe, draft="frozen", window=1)
    got = alone(3, generator=generators(3), num_inference_steps=num_steps, output_type="np").images
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4)
    assert alone.stats.rounds.tolist() == [2 * num_steps] * 3


def test_a_folder(tmp_path):
    pixel_pipeline().save_pretrained(tmp_path)
    loaded = AsdImagePipeline.from_pretrained(tmp_path, window=8)
    quiet(loaded.pipe)
    image = loaded(generator=torch.Generator().manual_seed(0)).images[0]
    assert isinstance(image, Image.Image)
    assert image.size == (4, 4)
    assert loaded.stats.rounds < K
    again = accelerate_pipeline(pixel_pipeline(), window=8)(generator=torch.Generator().manual_seed(0)).images[0]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(again))


def test_pickled_weights_are_refused(tmp_path):
    pixel_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(CheckpointError, match="safetensors"):
        AsdImagePipeline.from_pretrained(tmp_path)
    AsdImagePipeline.from_pretrained(tmp_path, loading={"use_safetensors": False})


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        AsdImagePipeline.from_pretrained(tmp_path)
    pixel_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        AsdImagePipeline.from_pretrained(tmp_path)


def test_labels_and_guidance_change_the_images():
    pipeline = accelerate_pipeline(pixel_pipeline(num_class_embeds=3), window=8)

    def images(**arguments):
        return pipeline(2, generator=generators(2), output_type="pt", **arguments).images

    zero, one = images(class_labels=[0, 0]), images(class_labels=[1, 1])
    guided = images(class_labels=[0, 0], guidance_scale=4.0, negative_label=2)
    assert not torch.allclose(zero, one, atol=1e-3)
    assert not torch.allclose(zero, guided, atol=1e-3)
    mixed = images(class_labels=[0, 1])
    torch.testing.assert_close(mixed, torch.stack([zero[0], one[1]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "arguments", "message"),
    [
        (None, {"class_labels": [1]}, "has no classes"),
        (3, {}, "has 3 classes"),
        (3, {"class_labels": [3]}, "from 0 to 2"),
        (3, {"class_labels": [1, 1]}, "for 1 images"),
        (3, {"class_labels": [1], "guidance_scale": 2.0}, "negative_label"),
        (None, {"guidance_scale": 2.0}, "negative_label"),
        (None, {"num_inference_steps": 21}, "1 to 20"),
        (None, {"generator": generators(2)}, "2 generators"),
    ],
)
def test_refused_calls(classes, arguments, message):
    with pytest.raises(ConfigError, match=message):
        accelerate_pipeline(pixel_pipeline(num_class_embeds=classes))(**arguments)


def test_refused_pipelines():
    with pytest.raises(ConfigError, match="FlowMatch"):
        AsdImagePipeline(DDPMPipeline(pixel_unet(), FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(ConfigError, match="window"):
        accelerate_pipeline(pixel_pipeline(), window=0)()
    with pytest.raises(ConfigError, match="Got a DDPMScheduler"):
        accelerate_pipeline(DDPMScheduler())


@pytest.mark.parametrize(("sampler", "options"), [("asd", {"window": 8}), ("ddpm", {}), ("ddim", {"num_steps": 5})])
def test_progress(sampler, options, capsys):
    pipeline = AsdImagePipeline(pixel_pipeline(), sampler, **options)
    pipeline.pipe.set_progress_bar_config(disable=False)
    frontiers = []
    pipeline(2, generator=generators(2), on_round=lambda frontier, x: frontiers.append(int(frontier.min())))
    steps = 5 if sampler == "ddim" else K
    assert f"{steps}/{steps}" in capsys.readouterr().err
    assert frontiers == sorted(frontiers)
    assert frontiers[-1] == steps
    assert len(frontiers) == int(pipeline.stats.rounds.max())


def test_with_sampler_keeps_the_pipeline():
    pipeline = accelerate_pipeline(pixel_pipeline())
    assert pipeline.with_sampler("ddpm").pipe is pipeline.pipe
