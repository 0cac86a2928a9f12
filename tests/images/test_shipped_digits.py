"""The shipped DDPM of digits: plain diffusers loads it, and it draws the digits that it is asked for in few rounds."""

from pathlib import Path

import torch
from diffusers import DDPMPipeline

from asd_policy.images import AsdImagePipeline
from asd_policy.images.frechet import DigitClassifier, accuracy, load_reference

FOLDER = Path(__file__).parents[2] / "checkpoints" / "digits"
STEPS = 50


def test_diffusers_loads_it() -> None:
    pipe = DDPMPipeline.from_pretrained(FOLDER, use_safetensors=True)
    assert (pipe.scheduler.config.num_train_timesteps, pipe.unet.config.num_class_embeds) == (1000, 11)
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 30 * 2**20


def test_it_draws_the_digits_that_it_is_asked_for() -> None:
    pipeline = AsdImagePipeline.from_pretrained(FOLDER, draft="path", window=16)
    pipeline.pipe.set_progress_bar_config(disable=True)
    labels = [*range(10)] * 2
    generators = [torch.Generator().manual_seed(row) for row in range(len(labels))]
    drawn = pipeline(len(labels), labels, generator=generators, num_inference_steps=STEPS, output_type="latent")
    classifier = load_reference(FOLDER / "features.safetensors").inception
    assert isinstance(classifier, DigitClassifier)
    assert accuracy(classifier, drawn.images, torch.tensor(labels)) >= 0.7
    assert pipeline.stats.rounds.max() < STEPS / 2.5
